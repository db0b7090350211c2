"""A little world on disk: a model, texts, questions, and a run with every kind of kept file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from streamline.testing.models import tiny_model, tiny_tokenizer

__all__ = ["build", "search_suite", "suite"]

_WORDS = "the quick brown fox jumps over a lazy dog while nobody looks".split()  # noqa: SIM905


def build(folder: Path) -> Path:
    """Write the model, a text, scored questions, questions that are answered freely, the suite."""
    tiny_model("llama", n_layers=4, max_position_embeddings=1024).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [" ".join(_WORDS[i % 12 :] + _WORDS[: i % 7]) for i in range(300)]
    _write_lines(folder / "text.jsonl", [{"text": line} for line in lines])
    piqa = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(8)
    ]
    _write_lines(folder / "data" / "piqa" / "dev.jsonl", piqa)
    xsum = [{"dialogue": f"{i} foxes jumped.", "summary": f"Foxes: {i}"} for i in range(3)]
    _write_lines(folder / "data" / "xsum" / "dev.jsonl", xsum)
    for name, settings in {"suite": suite, "search": search_suite}.items():
        text = yaml.safe_dump(settings(folder))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def suite(folder: Path) -> dict[str, object]:
    """The settings of a run of four cells: scored and generated answers, perplexity, training."""
    text = {"texts": str(folder / "text.jsonl"), "length": 16}
    return {
        "models": [str(folder / "model")],
        "methods": ["dense", "shortgpt", "llm-streamline-ffn"],
        "sparsities": [0.3],
        "per_method": {"shortgpt": {"recovery": ["none", "lora"]}},
        "tasks": ["piqa", "streamline_xsum"],
        "data_dir": str(folder / "data"),
        "device": "cpu",
        "efficiency": "off",
        "calibration": text | {"n_samples": 4},
        "training": text
        | {"n_tokens": 256, "epochs": 2, "batch_tokens": 64, "validation_tokens": 64}
        | {"evaluations": 1, "cache_bytes": 1_000_000},
        "lora": {"n_tokens": 6000, "validation_tokens": 64},
        "perplexity": text | {"n_tokens": 128},
        "batch_tokens": 64,
    }


def search_suite(folder: Path) -> dict[str, object]:
    """The settings of a run of two cells: a search of several rounds, and distillation."""
    own = {"methods": ["dense", "sleb"], "sparsities": [0.5], "recovery": ["kd"], "tasks": ["piqa"]}
    return {name: it for name, it in suite(folder).items() if name != "per_method"} | own


def _write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
