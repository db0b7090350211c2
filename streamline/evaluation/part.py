"""What the evaluation of a task consists of, apart from lm-eval: its questions, rows and averages.

Example::

    part.requests                                  # token ids for the scorer
    combine(entry, [block_of_one_subject, block_of_another])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.tasks.catalogue import TaskEntry

if TYPE_CHECKING:
    from streamline.evaluation.scoring.score import Answers

__all__ = ["BatchTokenizer", "Part", "combine", "option_rows"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """The questions of one lm-eval task.

    Attributes:
        name: lm-eval's name of the task.
        entry: The row of the report it belongs to.
        task: lm-eval's task object.
        instances: lm-eval's requests, question after question, option after option.
        requests: The same as token ids; empty for tasks that generate text.
        n_docs: Number of questions.
        data_hash: Fingerprint of the questions.
    """

    name: str
    entry: TaskEntry
    task: Any
    instances: tuple[Any, ...]
    requests: tuple[Request, ...]
    n_docs: int
    data_hash: str

    @property
    def generates(self) -> bool:
        """Whether answers are texts (:func:`generate`) and not log-probabilities."""
        return bool(self.task.OUTPUT_TYPE == "generate_until")


def combine(entry: TaskEntry, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a report from its tasks: their unweighted mean (MMLU's subjects).

    Its standard error comes from those of the subjects; where a limit leaves one question to a
    subject, which has none, from how the subjects' values spread about their mean (too wide, if
    anything, since subjects differ in difficulty).
    """
    if len(blocks) == 1 and len(entry.tasks) == 1:
        return dict(blocks[0])
    values = [block["value"] for block in blocks]
    errors = [block["stderr"] for block in blocks]
    stderr: float | None = None
    if all(error is not None for error in errors):
        stderr = float(np.sqrt(np.sum(np.square(errors)))) / len(blocks)
    elif len(blocks) > 1:
        stderr = float(np.std(values, ddof=1)) / len(blocks) ** 0.5
    return {
        "metric": blocks[0]["metric"],
        "value": float(np.mean(values)),
        "stderr": stderr,
        "n": sum(block["n"] for block in blocks),
        "version": blocks[0]["version"],
        "subjects": len(blocks),
    }


def option_rows(
    part: Part,
    doc: Any,
    asked: list[Any],
    places: list[int],
    answers: Answers,
    common: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of one question of a task with log-probabilities."""
    places = sorted(places, key=lambda place: part.instances[place].idx)
    sums = answers.loglikelihood[places]
    lengths: list[int] | None = None
    if part.entry.protocol == "opencompass-ppl":
        lengths = list(doc["n_tokens"])
        means = -sums / np.array(lengths)
        chosen, gold = int(np.argmin(means)), int(doc["gold"])
    elif part.task.OUTPUT_TYPE == "loglikelihood":
        chosen, gold = 0, 0
    else:
        choices = part.task.doc_to_choice(doc)
        sums = sums[: len(choices)]
        norm = {
            "acc_norm": np.array([float(len(choice)) for choice in choices]),
            "acc_bytes": np.array([float(len(choice.encode())) for choice in choices]),
        }.get(common["metric"], np.ones(len(choices)))
        chosen, gold = int(np.argmax(sums / norm)), gold_option(part.task, doc, choices)
    return [
        common
        | {
            "option": option,
            "loglikelihood": float(sums[option]),
            "n_tokens": int(answers.n_tokens[place]),
            "n_bytes": len(asked[option].args[1].encode("utf-8")),
            "prompt_nll": None if lengths is None else float(means[option]),
            "prompt_tokens": None if lengths is None else int(lengths[option]),
            "gold": gold,
            "chosen": chosen,
        }
        for option, place in enumerate(places[: len(sums)])
    ]


def gold_option(task: Any, doc: Any, choices: Sequence[str]) -> int:
    """Index of the right option as lm-eval reads it; the first where several are right."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return choices.index(gold) if isinstance(gold, str) else int(gold)


class BatchTokenizer:
    """A tokenizer that first collects what it is to encode and then remembers it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[tuple[bool | None, str], list[int]] = {}
        self._filled = False

    def __getattr__(self, name: str) -> Any:
        """Everything else is the tokenizer's own."""
        return getattr(self._tokenizer, name)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text; placeholders until :meth:`fill` was called."""
        if self._filled:
            return self._ids[add_special_tokens, text]
        self._ids[add_special_tokens, text] = []
        return [0, 0]

    def fill(self) -> None:
        """Encode everything collected, in one call for each way of adding special tokens."""
        for special in {key[0] for key in self._ids}:
            texts = [text for kind, text in self._ids if kind == special]
            options = {} if special is None else {"add_special_tokens": special}
            batch = self._tokenizer(texts, verbose=False, **options)["input_ids"]
            for text, ids in zip(texts, batch, strict=True):
                self._ids[special, text] = list(ids)
        self._filled = True
