"""A tiny model on disk, with a text and questions in their original form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamline.run.config import RunConfig, build_config
from streamline.testing.models import tiny_model, tiny_tokenizer

__all__ = ["small_run", "write_inputs"]


def write_inputs(folder: Path, *, n_questions: int) -> Path:
    """Write ``model`` (a Llama of 6 layers), ``text.jsonl`` and ``data/piqa/dev.jsonl``.

    Args:
        folder: Where.
        n_questions: Questions of PIQA.

    Returns:
        The folder.
    """
    tiny_model("llama", n_layers=6).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = "the quick brown fox jumps over a lazy dog while nobody looks".split()  # noqa: SIM905
    lines = [" ".join(words[i % 12 :] + words[: i % 7]) for i in range(400)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    questions = folder / "data" / "piqa"
    questions.mkdir(parents=True)
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(n_questions)
    ]
    (questions / "dev.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def small_run(place: Path, out: Path, **changes: Any) -> RunConfig:
    """A small run of that model.

    Args:
        place: From :func:`write_inputs`.
        out: Its folder.
        **changes: Other fields of the run.
    """
    text = {"texts": str(place / "text.jsonl"), "length": 16}
    training = {"n_tokens": 256, "batch_tokens": 64, "validation_tokens": 64, "evaluations": 1}
    given = {
        "models": str(place / "model"),
        "methods": "random-layers,shortgpt,llm-streamline-layer,llm-streamline-ffn",
        "sparsities": "0.3",
        "tasks": "piqa",
        "out": out,
        "device": "cpu",
        "efficiency": "off",
        "data_dir": place / "data",
        "calibration": text | {"n_samples": 4},
        "training": text | training,
        "perplexity": text | {"n_tokens": 64},
    }
    return build_config(given | changes)
