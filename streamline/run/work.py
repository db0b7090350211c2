"""A cell under way, and a pruned model that is not evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streamline.engine.decoder import Decoder
from streamline.method import Method, Pruned
from streamline.run.cell import Cell


@dataclass(frozen=True)
class Built:
    """One pruned and trained model, not evaluated."""

    pruned: Pruned
    decoder: Decoder
    tokenizer: Any
    provenance: dict[str, Any]


@dataclass(eq=False)
class Work:
    """A cell under way."""

    cell: Cell
    method: Method
    key: str
    pruned: Pruned | None = None
    cost: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def built(self) -> Pruned:
        """The pruned model, which must be there by now."""
        assert self.pruned is not None, self.cell
        return self.pruned
