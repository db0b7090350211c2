"""A tiny model, made-up questions and made-up tokens in the place of the real ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from streamline.benchmarks.speed.common import Options
from streamline.evaluation.harness import task_part
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.testing.models import tiny_model, tiny_tokenizer

WORDS = re.findall(
    r"\w+", "the cat sat on a warm mat while the old garden of rue grew near a wall of stone"
)


@pytest.fixture
def words() -> list[str]:
    """Some words to write with."""
    return list(WORDS)


@pytest.fixture
def options() -> Options:
    """Quick rows of two repetitions that measure no memory."""
    return Options(size="quick", repeats=2, model="tiny", memory=False)


@pytest.fixture
def asked() -> Callable[[int], list[tuple[str, list[str], int]]]:
    """``asked(n)``: written questions of three options, behind one common beginning."""

    def write(n: int) -> list[tuple[str, list[str], int]]:
        return [
            (f"Once: {' '.join(WORDS[i : i + 4])}", [f" {w}" for w in WORDS[i : i + 3]], i % 3)
            for i in range(n)
        ]

    return write


@pytest.fixture
def toy_parts() -> Callable[..., list[Any]]:
    """Two tasks of lm-eval over made-up questions, in the place of the packaged ones."""
    return _toy_parts


@pytest.fixture
def toy_tokens() -> Callable[..., torch.Tensor]:
    """Random tokens in the place of calibration text."""
    return _toy_tokens


def _toy_parts(names: Any, tokenizer: Any, model: Any, limit: int) -> list[Any]:
    """Two tasks of lm-eval over made-up questions, in the place of the packaged ones."""
    from lm_eval.api.task import ConfigurableTask

    docs = [
        {"q": " ".join(WORDS[i % 9 : i % 9 + 4 + i % 3]), "options": WORDS[i % 7 : i % 7 + 3]}
        | {"gold": i % 3}
        for i in range(limit)
    ]
    parts = []
    for name in ("first", "second"):
        config = {
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": f"{name}: {{{{q}}}}",
            "doc_to_choice": "options",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            "metadata": {"version": 1},
        }
        entry = TaskEntry(name=name, tasks=(name,), protocol="lm-eval", metric="acc")
        parts.append(task_part(ConfigurableTask(config=config), entry, tokenizer, max_length=512))
    return parts


def _toy_tokens(tokenizer: Any, n: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 250, (n, min(length, 48)), generator=generator)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Give a row's module a tiny model, made-up questions and made-up tokens."""

    def install(module: Any, n_layers: int = 6) -> tuple[Any, Any]:
        model = tiny_model("llama", n_layers=n_layers).requires_grad_(False)
        half = tiny_model("llama", n_layers=n_layers).requires_grad_(False).bfloat16()
        tokenizer = tiny_tokenizer()
        replace = {
            "loaded": lambda name, dtype="float32": (
                half if dtype == "bfloat16" else model, tokenizer,
            ),
            "task_parts": _toy_parts,
            "samples": _toy_tokens,
        }  # fmt: skip
        for name, value in replace.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        return model, tokenizer

    return install
