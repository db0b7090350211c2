"""Padded sequences to train a whole model on: packed text, or instructions with their answers.

All kinds of training data become padded sequences that name the first token whose loss counts, so
one loss serves both: all tokens of running text, only the answer of an example.

Example::

    as_sequences([{"instruction": "Add 2 and 3.", "output": "5"}], tokenizer, length=256)

Notation: N sequences, B sequences of one batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamline.errors import ConfigError
from streamline.sources.instructions import prompt_text

__all__ = ["Examples", "Sequences", "TrainingData", "as_sequences", "padded"]

#: Rows with ``instruction``, ``output`` and perhaps ``input``.
Examples = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Sequences:
    """Right-padded token sequences.

    Attributes:
        ids: Tokens, [N, T], int64.
        lengths: Tokens of each without padding, [N].
        first: Index of the first token whose loss counts, [N].
        packed: Whether they stand for running text in batches, all of one length.
    """

    ids: Tensor
    lengths: Tensor
    first: Tensor
    packed: bool

    def part(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Some sequences, as wide as the longest: ids [B, T] and which tokens count, [B, T], bool.

        Under a causal mask, padding on the right cannot reach a token that counts.
        """
        lengths = self.lengths[indices]
        width = int(lengths.max())
        places = torch.arange(width)
        scored = (places >= self.first[indices, None]) & (places < lengths[:, None])
        return self.ids[indices, :width], scored


#: Token batches, [N, T], int64; examples; or sequences, which are used as they are.
TrainingData = Tensor | Examples | Sequences


def as_sequences(data: TrainingData, tokenizer: Any, length: int) -> Sequences:
    """Training data of any kind as padded sequences.

    Args:
        data: Token batches, which are used as they are, examples, or sequences already.
        tokenizer: A Hugging Face tokenizer, for examples.
        length: Examples are truncated to this many tokens; one whose whole answer would be lost is
            left out.

    Raises:
        ConfigError: If there is nothing to learn from, or a tokenizer is missing.
    """
    if isinstance(data, Sequences):
        return data
    if isinstance(data, Tensor):
        if data.dim() != 2 or data.dtype != torch.int64 or not len(data) or data.shape[1] < 2:
            raise ConfigError(
                "training needs token batches [N, T], int64, of at least 2 tokens each, got "
                f"{data.dtype} {tuple(data.shape)}"
            )
        n, width = data.shape
        return Sequences(data, torch.full((n,), width), torch.ones(n, dtype=torch.int64), True)
    if tokenizer is None:
        raise ConfigError("examples with instructions need tokenizer=, got None")
    rows: list[tuple[list[int], int]] = []
    for example in data:
        prompt = list(tokenizer(prompt_text(example)).input_ids)
        answer = list(tokenizer(example["output"], add_special_tokens=False).input_ids)
        if tokenizer.eos_token_id is not None:
            answer.append(tokenizer.eos_token_id)
        if answer and 0 < len(prompt) < length:
            rows.append(((prompt + answer)[:length], len(prompt)))
    if not rows:
        raise ConfigError(
            f"none of {len(data)} examples has an answer within {length} tokens; raise the length"
        )
    return padded(rows)


def padded(rows: Sequence[tuple[list[int], int]], width: int | None = None) -> Sequences:
    """Sequences of several lengths, with zeros behind them.

    Args:
        rows: Tokens, and the index of the first whose loss counts.
        width: Tokens of the running text that they stand for; None for the longest.
    """
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    ids = torch.zeros(len(rows), width or int(lengths.max()), dtype=torch.int64)
    for index, (row, _) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return Sequences(ids, lengths, torch.tensor([first for _, first in rows]), width is not None)
