"""What one attention keeps of the prefix, the prompts and the rows that generate.

Example::

    slot = Slot()
    slot.put_prompts(key, value, start=0, shape=(4, 120), places=1)
    slot.put_token(key, value, index=0)

Notation: see :mod:`streamline.evaluation.generation.cache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamline.engine.decoder import Decoder

__all__ = ["Range", "Slot", "bytes_per_token"]

Range = tuple[int, int]
"""First and end of the paths that run a place, or of rows."""
_FIRST = 16  # generated tokens that a fresh buffer holds


@dataclass
class Slot:
    """Keys and values of one attention: pairs of tensors, None before they are there.

    Attributes:
        prefix: Of the common prefix, [S, G, P, d].
        prompts: Of the prompts after it, place after place, [S * R, G, T, d].
        rows: Of the generated tokens, [N, G, size, d].
    """

    prefix: tuple[Tensor, Tensor] | None = None
    prompts: tuple[Tensor, Tensor] | None = None
    rows: tuple[Tensor, Tensor] | None = None

    def put_prompts(
        self, key: Tensor, value: Tensor, start: int, shape: tuple[int, int], places: int
    ) -> None:
        """Keep some prompts, [S * r, G, t, d], from number ``start`` on, of R with T tokens."""
        _, heads, length, width = key.shape
        n = len(key) // places
        if (n, length) == shape:
            self.prompts = key.contiguous(), value.contiguous()
            return
        if self.prompts is None:
            size = (places * shape[0], heads, shape[1], width)
            self.prompts = key.new_zeros(size), value.new_zeros(size)
        for kept, new in zip(self.prompts, (key, value), strict=True):
            by_place = kept.view(places, shape[0], heads, shape[1], width)
            by_place[:, start : start + n, :, :length] = new.view(places, n, *new.shape[1:])

    def put_token(self, key: Tensor, value: Tensor, index: int) -> None:
        """Keep the token that every row generated as number ``index``, [N, G, 1, d]."""
        if self.rows is None or index >= self.rows[0].shape[2]:
            n, heads, _, width = key.shape
            size = max(_FIRST, 2 * index)
            grown = key.new_empty(n, heads, size, width), value.new_empty(n, heads, size, width)
            for new, old in zip(grown, self.rows or (), strict=False):
                new[:, :, :index] = old[:, :, :index]
            self.rows = grown
        for kept, new in zip(self.rows, (key, value), strict=True):
            kept[:, :, index] = new[:, :, 0]


def bytes_per_token(decoder: Decoder) -> int:
    """What one layer keeps of one token, at most."""
    config: Any = decoder.config
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or decoder.hidden_size // heads)
    return 2 * groups * width * decoder.dtype.itemsize
