"""How a run of layers changes the mean magnitude of the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.methods.linear_algebra import exact_device
from streamline.plan import Span


@torch.no_grad()
def magnitude_ratios(
    decoder: Decoder,
    batches: Tensor,
    span: Span,
    turn: Tensor | None = None,
    *,
    batch_tokens: int = 4096,
) -> Tensor:
    """Mean magnitude after a run over that before it, per channel.

    Args:
        decoder: The dense model; left as it was.
        batches: Token ids, [N, T].
        span: The run of layers.
        turn: A rotation of the channels, [D, D], float64; None for the channels themselves.
        batch_tokens: Tokens per forward pass.

    Returns:
        The mean over sequences of each sequence's ratio, [D], float64, on the CPU. Channels that
        are silent before the run keep the scale 1.
    """
    device = exact_device(decoder.device)
    total = torch.zeros(decoder.hidden_size, dtype=torch.float64, device=device)
    turn = None if turn is None else turn.to(device)
    rows = max(1, batch_tokens // batches.shape[1])
    for start in range(0, len(batches), rows):
        ends = []
        for depth, hidden in decoder.trace(decoder.enter(batches[start : start + rows]), span.stop):
            if depth in (span.start, span.stop):
                states = hidden.to(total)
                ends.append((states if turn is None else states @ turn).abs().mean(1))
        before, after = ends
        total += torch.where(before > 0, after / before, 1.0).sum(0)
    return total.cpu() / len(batches)
