"""A field of methods that drop layers: refit those that are left."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from streamline.engine.budget import Effort
from streamline.engine.decoder import Decoder
from streamline.method import Method, Pruned
from streamline.methods.refit import cannot_refit, refit_effort, refitted, rehearse_refit

__all__ = ["Refitting"]


@dataclass(frozen=True, kw_only=True)
class Refitting(Method):
    """What refitting adds to a method, which names it before its other base.

    Attributes:
        refit: Whether the layers that are left are refitted in closed form
            (:mod:`streamline.methods.refit`).
    """

    refit: bool = False

    def __post_init__(self) -> None:
        """Refitting changes layers in memory."""
        super().__post_init__()
        if self.refit:
            object.__setattr__(self, "supports_streaming", False)

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models whose layers cannot be refitted, where that is asked for."""
        reason = cannot_refit(decoder) if self.refit else None
        return reason or super().unsupported(decoder)

    def rehearse(self, decoder: Decoder, few: Decoder, batches: Tensor, sparsity: float) -> None:
        """Refitting where that is asked for, and the shared calibration, which asks for a value."""
        if self.refit:
            rehearse_refit(few, batches)
        super().rehearse(decoder, few, batches, sparsity)

    @property
    def rehearses_shared(self) -> bool:
        """Without refitting."""
        return not self.refit

    def with_refit(self, decoder: Decoder, pruned: Pruned, batches: Tensor) -> Pruned:
        """What pruning gives: its layers, refitted where that is asked for."""
        return refitted(decoder, pruned, batches) if self.refit else pruned

    def refit_effort(
        self, decoder: Decoder, n_remove: int, first: float, shape: tuple[int, int]
    ) -> Effort:
        """As :func:`streamline.methods.refit.refit_effort`; nothing without refitting."""
        return refit_effort(decoder, n_remove, first, shape) if self.refit else Effort()
