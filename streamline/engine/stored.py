"""Models whose weights take fewer bytes on disk than they compute with.

Example::

    mark(model, Stored(way="4 bits a weight", saved=150_000_000))
    stored_of(assemble(dense_path(Decoder(model)))).way
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["Stored", "mark", "stored_of"]

_NAME = "streamline_stored"


@dataclass(frozen=True)
class Stored:
    """How a model's weights are stored; the model in memory holds what is read back from that.

    Attributes:
        way: The format, as in ``4 bits a weight in groups of 64``.
        saved: Bytes that it takes less than the tensors in memory.
    """

    way: str
    saved: int


def mark(model: nn.Module, stored: Stored) -> None:
    """Say of a model how it is stored; copies of it say so too."""
    setattr(model, _NAME, stored)


def stored_of(model: nn.Module) -> Stored | None:
    """How a model is stored, or None if as it is in memory."""
    found: Stored | None = getattr(model, _NAME, None)
    return found
