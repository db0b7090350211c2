"""How a run of layers changes the mean magnitude of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.methods.linear_algebra import exact_device
from streamline.methods.teacher_fits import Fit, fitted
from streamline.plan import Span


class MagnitudeFit(Fit):
    """Each sequence's mean magnitude after a run over that before it, per channel, summed.

    Args:
        span: The run of layers.
        turn: Gives a rotation of the channels, [D, D], float64, for a width D; None for the
            channels themselves.
    """

    def __init__(self, span: Span, turn: Callable[[int], Tensor] | None = None) -> None:
        super().__init__(span)
        self.turn = turn

    @property
    def key(self) -> Hashable:
        """What decides the sums, beside model and tokens."""
        return super().key, self.turn

    def begin(self, decoder: Decoder) -> None:
        """Sums of nothing, float64, where that can be had."""
        width, device = decoder.hidden_size, exact_device(decoder.device)
        self.matrix = None if self.turn is None else self.turn(width).to(device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.n_sequences = 0

    def update(self, start: Tensor, stop: Tensor, mlp: Tensor | None) -> None:
        """Add a batch."""
        before, after = (self._magnitude(states.to(self.total)) for states in (start, stop))
        self.total += torch.where(before > 0, after / before, 1.0).sum(0)
        self.n_sequences += len(start)

    def _magnitude(self, states: Tensor) -> Tensor:
        """Of each sequence, [B, D]."""
        return (states if self.matrix is None else states @ self.matrix).abs().mean(1)

    @property
    def ratios(self) -> Tensor:
        """The mean over sequences, [D], float64, on the CPU: 1 for channels silent before it."""
        return self.total.cpu() / self.n_sequences


def magnitude_ratios(
    decoder: Decoder,
    batches: Tensor,
    span: Span,
    turn: Callable[[int], Tensor] | None = None,
    *,
    batch_tokens: int = 4096,
) -> Tensor:
    """Mean magnitude after a run over that before it, per channel.

    Args:
        decoder: The dense model; left as it was.
        batches: Token ids, [N, T].
        span: The run of layers.
        turn: As of :class:`MagnitudeFit`.
        batch_tokens: Tokens per forward pass.

    Returns:
        The mean over sequences of each sequence's ratio, [D], float64, on the CPU. Channels that
        are silent before the run keep the scale 1.
    """
    (sums,) = fitted(decoder, [MagnitudeFit(span, turn)], batches, batch_tokens=batch_tokens)
    return sums.ratios
