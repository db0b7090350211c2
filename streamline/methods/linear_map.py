"""The linear map from a span's input to its output, by least squares.

Example:
    maps = linear_maps(decoder, [Span(8, 12)], batches)
    weight, bias = maps[Span(8, 12)]
    make("linear", decoder, Span(8, 12), init="linear", linear=(weight, bias))

Notation: N sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.methods.linear_algebra import exact_device, solve
from streamline.methods.teacher_fits import Fit, fitted
from streamline.plan import Span


def linear_maps(
    decoder: Decoder,
    spans: Sequence[Span],
    train: Tensor,
    *,
    ridge: float = 1e-4,
    weighted: bool = False,
    micro_batch: int = 4096,
) -> dict[Span, tuple[Tensor, Tensor]]:
    """The least-squares map from a span's input to its output, for many spans in one pass.

    Args:
        decoder: The dense model.
        spans: The spans; they may overlap.
        train: Tokens, [N, T], int64.
        ridge: Pull towards the identity, as a fraction of the mean variance of the input.
        weighted: Whether each token's squared error counts over the mean square of its output.
        micro_batch: Tokens per forward pass.

    Returns:
        For each span ``(W [D, D], b [D])``, float64 on the CPU, with ``output`` near ``W x + b``:
        the ``linear`` of :func:`streamline.methods.replacement.make`.
    """
    wanted = sorted(set(spans))
    sums = [LinearFit(span, weighted=weighted) for span in wanted]
    fits = fitted(decoder, sums, train, batch_tokens=micro_batch)
    solved = {span: fit.moments.solve(ridge) for span, fit in zip(wanted, fits, strict=True)}
    return {span: (weight.cpu(), bias.cpu()) for span, (weight, bias) in solved.items()}


class LinearFit(Fit):
    """The moments that the linear map of a span is solved from.

    A few tokens have states hundreds of times larger than the others, and own a plain sum of
    squares. Weighted, a token counts over the mean square of what it is after the span: the map
    is then the best one by the error of :func:`streamline.training.objectives.squared_error` with
    ``normalize``, which training goes on with.

    Args:
        span: The layers.
        weighted: Whether tokens are weighted.
    """

    def __init__(self, span: Span, *, weighted: bool = False) -> None:
        super().__init__(span)
        self.weighted = weighted

    @property
    def key(self) -> Hashable:
        """What decides the sums, beside model and tokens."""
        return super().key, self.weighted

    def begin(self, decoder: Decoder) -> None:
        """Moments of nothing, where float64 can be had."""
        self.moments = LinearMoments(decoder.hidden_size, exact_device(decoder.device))

    def update(self, start: Tensor, stop: Tensor, mlp: Tensor | None) -> None:
        """Add a batch."""
        weights = None
        if self.weighted:
            sizes = stop.to(self.moments.shift).square().mean(-1)
            weights = 1.0 / sizes.clamp_min(torch.finfo(torch.float32).tiny)
        self.moments.update(start, stop, weights)

    def rehearse(self, few: Decoder) -> None:
        """Solve."""
        self.moments.solve()


class LinearMoments:
    """First and second moments of pairs of hidden states, for the best linear map between them.

    Sums are kept in float64 around the mean of the first batch, in two D x D matrices.

    Args:
        d: Hidden size, D.
        device: Where the sums are kept.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n_tokens = 0
        self.total = zeros()  # of the tokens' weights
        self.shift = zeros(d)
        self.sum_x, self.sum_step = zeros(d), zeros(d)
        self.xtx, self.xt_step = zeros(d, d), zeros(d, d)

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            x: Hidden states before the span, [..., D].
            y: Hidden states after it, of the same shape.
            weights: What each token's squared error counts, [...]; None for 1.

        Raises:
            ValueError: If the shapes differ.
        """
        if x.shape != y.shape:
            raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} must have the same shape")
        x = x.reshape(-1, x.shape[-1]).to(self.shift)  # [tokens, D]
        step = y.reshape(-1, y.shape[-1]).to(self.shift) - x  # [tokens, D]
        if self.n_tokens == 0:
            self.shift = x.mean(0)
        x = x - self.shift
        self.n_tokens += len(x)
        counted = x
        if weights is None:
            self.total += len(x)
            self.sum_step += step.sum(0)
        else:
            weights = weights.reshape(-1, 1).to(self.shift)  # [tokens, 1]
            self.total += weights.sum()
            self.sum_step += (weights * step).sum(0)
            counted = weights * x
        self.sum_x += counted.sum(0)
        self.xtx += counted.T @ x  # [D, D]
        self.xt_step += counted.T @ step  # [D, D]

    def solve(self, ridge: float = 1e-4) -> tuple[Tensor, Tensor]:
        """The map of least squared error.

        The penalty pulls it towards the identity, which is the map of a dropped span.

        Args:
            ridge: Penalty, as a fraction of the mean variance of x, weighted as the tokens are.

        Returns:
            ``(W [D, D], b [D])``, float64, with ``y`` near ``W x + b``.

        Raises:
            ValueError: If nothing was added.
        """
        if self.n_tokens == 0:
            raise ValueError("no hidden states were added; call update first")
        mean_x, mean_step = self.sum_x / self.total, self.sum_step / self.total
        variance = self.xtx / self.total - torch.outer(mean_x, mean_x)
        covariance = self.xt_step / self.total - torch.outer(mean_x, mean_step)
        eye = torch.eye(len(mean_x), dtype=variance.dtype, device=variance.device)
        penalty = ridge * variance.diagonal().mean().clamp_min(torch.finfo(variance.dtype).tiny)
        change = solve(variance + penalty * eye, covariance).T
        bias = mean_step - change @ (mean_x + self.shift)
        return eye + change, bias
