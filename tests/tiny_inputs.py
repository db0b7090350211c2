"""A tiny model on disk, with a text and questions in their original form; an older tokenizer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from streamline.run.config import RunConfig, build_config
from streamline.testing.models import tiny_model, tiny_tokenizer

__all__ = ["small_run", "write_inputs", "write_sentencepiece"]


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


def write_sentencepiece(folder: Path, kind: str = "bpe") -> Any:
    """Write a tokenizer as Llama 2 has it, of sentencepiece alone, into a model's folder.

    Args:
        folder: The model's.
        kind: ``bpe``, with a token for each byte, or another of sentencepiece's.

    Returns:
        Its processor.
    """
    import sentencepiece

    written = io.BytesIO()
    text = "leave it in a box, put it away, keep it dry 0 1 2 3 4 5 6 7 8 9"
    bpe = kind == "bpe"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 9), model_writer=written, model_type=kind, minloglevel=2,
        vocab_size=310 if bpe else 35, byte_fallback=bpe, character_coverage=1.0,
    )  # fmt: skip
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
