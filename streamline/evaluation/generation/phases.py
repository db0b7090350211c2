"""Reading prompts before anything is generated: their common prefix, then each one's rest.

Both fill the cache of :mod:`streamline.evaluation.generation.cache` and compute attention by the
model's own function.

Example::

    trie.forward(decoder.enter(prefix), Prefix(), at_end=ignore)
    trie.forward(decoder.enter(rest, mask, positions), Prompts(0, rest.shape, mask), at_end=collect)

Notation: see :mod:`streamline.evaluation.generation.cache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from streamline.evaluation.generation.cache import Attention, Step
from streamline.evaluation.generation.slots import Slot

__all__ = ["Prefix", "Prompts"]


class Prefix:
    """The common prefix of all prompts, [1, P]."""

    offsets: ClassVar[None] = None

    def attend(
        self,
        step: Step,
        slot: Slot,
        states: tuple[Tensor, Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        """Causal attention."""
        query, key, value = states
        slot.prefix = key.contiguous(), value.contiguous()
        return attention.own(query, key, value, None)


@dataclass(frozen=True)
class Prompts:
    """Some of the prompts after the common prefix, padded on the right.

    Attributes:
        start: The number of the first.
        shape: R and T of all prompts.
        mask: Additive, [1, 1, t, P + t]; None without a prefix.
    """

    start: int
    shape: tuple[int, int]
    mask: Tensor | None
    offsets: ClassVar[None] = None

    def attend(
        self,
        step: Step,
        slot: Slot,
        states: tuple[Tensor, Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        """Causal attention, to all of the prefix besides."""
        query, key, value = states
        places = len(step.places)
        slot.put_prompts(key, value, self.start, self.shape, places)
        if self.mask is None or slot.prefix is None:
            return attention.own(query, key, value, None)
        key, value = (
            torch.cat([_each(old, len(new) // places), new], dim=2)
            for old, new in zip(slot.prefix, (key, value), strict=True)
        )
        return attention.own(query, key, value, self.mask.to(query.device))


def _each(prefix: Tensor, n: int) -> Tensor:
    """The prefix of every place for n prompts each, [S, G, P, d] -> [S * n, G, P, d]."""
    return prefix[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
