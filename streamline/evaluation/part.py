"""The questions of one lm-eval task as requests, and a tokenizer that encodes them in batches.

Example::

    part.requests                                  # token ids for the scorer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.tasks.catalogue import TaskEntry

__all__ = ["BatchTokenizer", "Part"]


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


class BatchTokenizer:
    """A tokenizer that first collects the texts to encode and then returns their remembered ids."""

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
