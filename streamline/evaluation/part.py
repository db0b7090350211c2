"""The questions of one lm-eval task as requests, and a tokenizer that encodes them in batches.

Example::

    part.requests                                  # token ids for the scorer
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.evaluation.tasks.text_ids import token_ids

__all__ = ["BatchTokenizer", "Part"]

Made = TypeVar("Made")


@dataclass(frozen=True)
class _Kind:
    """In place of lm-eval's task: the kind of its answers."""

    OUTPUT_TYPE: str


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
        shots: Examples in each prompt.
        key: Content key of all that decides what a model is asked and how it is judged.
    """

    name: str
    entry: TaskEntry
    task: Any
    instances: tuple[Any, ...]
    requests: tuple[Request, ...]
    n_docs: int
    data_hash: str
    shots: int = 0
    key: str = ""

    @property
    def generates(self) -> bool:
        """Whether answers are texts (:func:`generate`) and not log-probabilities."""
        return bool(self.task.OUTPUT_TYPE == "generate_until")

    @property
    def place(self) -> str:
        """The name that answers are kept under: that of other questions is another one."""
        return f"{self.name}.{self.key[:16]}"

    def asked(self) -> Part:
        """What another process needs to answer: nothing of lm-eval's, which cannot be sent."""
        return replace(self, task=_Kind(self.task.OUTPUT_TYPE), instances=())

    def digest(self) -> str:
        """The SHA-256 of what a model is asked: tokens, or texts with their options."""
        found = hashlib.sha256(self.data_hash.encode("ascii"))
        for request in self.requests:
            head = (request.doc_id, request.option, len(request.context))
            found.update(array("q", (*head, *request.context, *request.continuation)).tobytes())
        if not self.requests:
            found.update(repr([instance.args for instance in self.instances]).encode("utf-8"))
        return found.hexdigest()


class BatchTokenizer:
    """A tokenizer for code that encodes text by text, which encodes them all together.

    Args:
        tokenizer: Encodes them, spread over the processor's cores where it is a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[tuple[bool | None, str], list[int]] = {}
        self._texts: dict[int, str] = {}
        self._filled = False

    def __getattr__(self, name: str) -> Any:
        """Everything else is the tokenizer's own."""
        return getattr(self._tokenizer, name)

    def answered(self, code: Callable[[], Made]) -> Made:
        """What some code makes of the ids of its texts.

        It is run twice: the first run collects the texts, and gets placeholders; the second reads
        their ids.
        """
        code()
        for special in {key[0] for key in self._ids}:
            texts = [text for kind, text in self._ids if kind == special]
            options = {} if special is None else {"add_special_tokens": special}
            for text, ids in zip(texts, token_ids(self._tokenizer, texts, **options), strict=True):
                self._ids[special, text] = ids
        self._filled = True
        return code()

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text."""
        if self._filled:
            return self._ids[add_special_tokens, text]
        self._ids[add_special_tokens, text] = []
        return [0, 0]

    def __call__(
        self, texts: Sequence[str], add_special_tokens: bool | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """The same of texts of one length, [N, T]: lm-eval asks for prompts one by one."""
        ids = torch.tensor([self.encode(text, add_special_tokens) for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """The text of token ids; lm-eval asks for that of a single one with each text."""
        if not isinstance(token_ids, int) or options:
            return self._tokenizer.decode(token_ids, **options)
        if token_ids not in self._texts:
            self._texts[token_ids] = self._tokenizer.decode(token_ids)
        return self._texts[token_ids]
