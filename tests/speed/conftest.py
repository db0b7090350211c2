"""A tiny model, made-up questions and made-up tokens instead of the real ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from streamline.benchmarks.speed import common, questions
from streamline.benchmarks.speed.common import Options
from streamline.evaluation.harness import task_part
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.testing.models import tiny_model, tiny_tokenizer

WORDS = re.findall(
    r"\w+", "the cat sat on a warm mat while the old garden of rue grew near a wall of stone"
)


@pytest.fixture
def options() -> Options:
    """The smallest rows, of two repetitions."""
    return Options(size="quick", repeats=2, model="tiny")


@pytest.fixture
def toy_parts() -> Callable[..., list[Any]]:
    """As ``questions.task_parts``, over made-up questions; one name gives one task of texts."""

    def build(
        names: Any, tokenizer: Any, model: Any, limit: int, shots: int | None = None
    ) -> list[Any]:
        texts = list(names) == ["streamline_gsm8k"]
        docs = [
            {"q": " ".join(WORDS[i % 9 : i % 9 + 4 + i % 3]), "options": WORDS[i % 7 : i % 7 + 3]}
            | {"gold": i % 3}
            for i in range(limit)
        ]
        return [_toy_part(name, docs, texts) for name in (["texts"] if texts else ["a", "b"])]

    return build


def _toy_part(name: str, docs: list[dict[str, Any]], texts: bool) -> Any:
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "doc_to_text": f"{name}: {{{{q}}}}",
        "doc_to_target": "gold",
        "metadata": {"version": 1},
    }
    if texts:
        config |= {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["ab"], "max_gen_toks": 9, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
    else:
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": "options",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    entry = TaskEntry(
        name=name, tasks=(name,), protocol="gen" if texts else "lm-eval",
        metric="exact_match" if texts else "acc",
    )  # fmt: skip
    return task_part(ConfigurableTask(config=config), entry, tiny_tokenizer(), max_length=512)


@pytest.fixture
def tiny(
    monkeypatch: pytest.MonkeyPatch, toy_parts: Callable[..., list[Any]]
) -> Callable[[int], Any]:
    """``tiny(n_layers)``: every row gets a tiny model, made-up questions and made-up tokens."""

    def tokens(tokenizer: Any, n: int, length: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randint(0, 250, (n, min(length, 48)), generator=generator)

    def install(n_layers: int) -> Any:
        model = tiny_model("llama", n_layers=n_layers).requires_grad_(False)
        monkeypatch.setattr(common, "loaded", lambda name: (model, tiny_tokenizer()))
        monkeypatch.setattr(common, "samples", tokens)
        monkeypatch.setattr(questions, "task_parts", toy_parts)
        return model

    return install
