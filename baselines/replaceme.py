"""ReplaceMe: one linear map for a run of layers, folded into the MLP before it.

The map replaces the run in closed form and is multiplied into the down projection of the layer
before, so the pruned model has no new parameter and no new code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, reading_flops, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.fields import Count, NonNegative, Positive
from streamline.method import Method, Pruned, Size
from streamline.methods.layers import at_hand, layer_copy, odd_layer, projection
from streamline.methods.linear_algebra import exact_device, solve
from streamline.methods.teacher_fits import Fit, fitted
from streamline.plan import Plan, Span, Step

from ._cosine_map import fit_cosine


@dataclass(frozen=True, kw_only=True)
class ReplaceMe(Method):
    """Drop a span; fold a linear map into the MLP before.

    The map solves ``M T = h_stop - (h_start - M)`` by least squares, with ``M`` the MLP output
    before the cut: ``h_start = M + Y``, where ``Y`` is all that reaches the cut except the MLP's
    output. With ``T`` folded into the projection that makes ``M``, that layer gives ``M T + Y``,
    the best guess at the states after the run.

    Attributes:
        distance: What the run is chosen by: ``"cosine"`` of all tokens, or ``"angle"`` of the last.
        ridge: Penalty on ``T``, as a fraction of the mean square of ``M``; for least squares.
        objective: ``"least-squares"`` in closed form, or ``"cosine"``: the mean cosine distance
            between ``M T + Y`` and ``h_stop``, by Adam from the identity.
        epochs: Passes over the calibration tokens; this and the next two for the cosine only.
        learning_rate: Adam's.
        batch: Tokens of a step.

    Reference:
        ReplaceMe, arXiv:2505.02819, equations for the estimation of the linear transform (L2 and
        cosine).

    Differs from the released code:
        It forms the normal equations with penalty 0 by default; the small relative penalty here
        keeps them solvable with fewer tokens than dimensions. It chooses the run by the angle at
        the last token, offered here as ``distance="angle"``. States after the last layer are
        read before the final norm. For the cosine it compares ``M T`` with ``h_stop - Y`` except
        in its accurate form, which is the one here, and keeps states in bfloat16 (here
        float32, three vectors for each calibration token). One run is replaced; replacing
        several at once is left out. Families with a norm after the MLP (Gemma 2, OPT-350m) are
        unsupported: nothing can be folded there. In a mixture the map is folded into every expert,
        which is the same, since what they give is added up.
    """

    name: ClassVar[str] = "replaceme"
    paper: ClassVar[str] = "arXiv:2505.02819"
    supports_streaming: ClassVar[bool] = True

    distance: Literal["cosine", "angle"] = "cosine"
    ridge: NonNegative = 1e-6
    objective: Literal["least-squares", "cosine"] = "least-squares"
    epochs: Count = 10
    learning_rate: Positive = 1e-4
    batch: Count = 1024

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models that normalise the MLP's output before it is added: no map can be folded there."""
        if decoder.family.extra_norms:
            return (
                f"{self.name} folds a map into the MLP's output projection, and "
                f"{decoder.family.name} puts a norm between that projection and the residual"
            )
        if not getattr(decoder.config, "do_layer_norm_before", True):
            return (
                f"{self.name} needs the residual stream before the norm, and {decoder.name} "
                "normalises after the addition"
            )
        odd = odd_layer(decoder)
        if odd is not None:
            return f"{self.name} folds a map into the MLP of the layer before the run, and {odd}"
        return super().unsupported(decoder)

    def span(self, calibration: Calibration, n_remove: int) -> Span:
        """The run to replace: the nearest in distance that leaves a layer before it.

        Raises:
            UnsupportedModelError: If all layers would be removed.
        """
        n = calibration.n_layers
        if n_remove >= n:
            raise UnsupportedModelError(
                f"{self.name} keeps the layer before the run, so at most {n - 1} of {n} layers can "
                f"be removed, not {n_remove}; choose a lower sparsity"
            )
        values = calibration.angle if self.distance == "angle" else -calibration.cosine
        start = 1 + int(torch.argmin(values.diagonal(n_remove)[1:]))
        return Span(start, start + n_remove)

    def fits(self, decoder: Decoder, calibration: Calibration, sparsity: float) -> list[Fit]:
        """The sums for the chosen run."""
        n_remove = layers_to_remove(decoder, sparsity)
        kind = StatesFit if self.objective == "cosine" else FoldFit
        return [kind(self.span(calibration, n_remove))] if n_remove else []

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Fit the map for the chosen run and fold it into a copy of the layer before."""
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        span = self.span(calibration, n_remove)
        if self.objective == "cosine":
            transform, error = self._by_cosine(decoder, batches, span, seed)
        else:
            transform, error = fit(decoder, batches, span, self.ridge)
        before = span.start - 1
        steps = (
            *(Step(i) for i in range(before)),
            Step(before, "layer-copy"),
            *(Step(i) for i in range(span.stop, decoder.n_layers)),
        )
        notes = {"span": [span.start, span.stop], **error}
        plan = Plan(decoder.n_layers, steps, "folded-linear")
        return Pruned(plan, {before: fold(decoder, before, transform)}, notes=notes)

    def _by_cosine(
        self, decoder: Decoder, batches: Tensor, span: Span, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        (found,) = fitted(decoder, [StatesFit(span)], batches)
        mlp, rest, target = (torch.cat(parts) for parts in zip(*found.rows, strict=True))
        return fit_cosine(
            mlp,
            rest,
            target,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch=self.batch,
            seed=seed,
            device=decoder.device,
        )

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """A pass for the sums; for the cosine, as many of the map alone as there are epochs."""
        tokens = math.prod(shape)
        products = 6.0 * tokens * decoder.hidden_size**2
        rounds = self.epochs if self.objective == "cosine" else 1
        found = reading_flops(decoder, tokens) + rounds * products
        return Effort(statistics_flops(decoder, tokens), found, passes=1)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would be removed; the map adds nothing."""
        return Size.without(decoder, layers_to_remove(decoder, sparsity))


def fit(
    decoder: Decoder, batches: Tensor, span: Span, ridge: float, *, batch_tokens: int = 4096
) -> tuple[Tensor, dict[str, Any]]:
    """The map from the MLP output before a span to the difference that is missing after it.

    Args:
        decoder: The dense model; left as it was.
        batches: Token ids, [N, T].
        span: The run of layers, starting at 1 or later.
        ridge: Penalty as a fraction of the mean square of the MLP output.
        batch_tokens: Tokens per forward pass.

    Returns:
        ``T`` [D, D], float64 on the CPU, for row vectors (``M T``), and the relative squared error
        of the states after the span with the map (``error``) and without it (``error_dropped``).
    """
    (sums,) = fitted(decoder, [FoldFit(span)], batches, batch_tokens=batch_tokens)
    transform, gram, moment = sums.transform(ridge), sums.gram, sums.moment
    explained = 2 * (transform * moment).sum() - (transform * (gram @ transform)).sum()
    target, dropped, whole = sums.squares.tolist()
    error = max(0.0, target - float(explained)) / whole
    return transform.cpu(), {"error": error, "error_dropped": dropped / whole}


class StatesFit(Fit):
    """The states that a map is fitted to, batch by batch."""

    def __init__(self, span: Span) -> None:
        super().__init__(span, reads_mlp=True)

    def begin(self, decoder: Decoder) -> None:
        """No batch yet."""
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, start: Tensor, stop: Tensor, mlp: Tensor | None) -> None:
        """Keep a batch in float32, [tokens, D] each: ``M``, ``Y`` and what comes after the span."""
        mlp, start, stop = _rows(start, stop, mlp, torch.device("cpu"))
        self.rows.append((mlp.float(), (start - mlp).float(), stop.float()))


class FoldFit(Fit):
    """The sums that a map of least squares is solved from."""

    def __init__(self, span: Span) -> None:
        super().__init__(span, reads_mlp=True)

    def begin(self, decoder: Decoder) -> None:
        """Sums of nothing, float64, where that can be had."""
        width, place = decoder.hidden_size, exact_device(decoder.device)
        zeros = partial(torch.zeros, dtype=torch.float64, device=place)
        self.gram, self.moment = zeros(width, width), zeros(width, width)
        self.squares = zeros(3)  # of what the map is to give, of what is dropped, of all

    def update(self, start: Tensor, stop: Tensor, mlp: Tensor | None) -> None:
        """Add a batch."""
        mlp, start, stop = _rows(start, stop, mlp, self.gram.device)
        step = stop - start
        target = mlp + step
        self.gram += mlp.T @ mlp
        self.moment += mlp.T @ target
        self.squares += torch.stack([each.square().sum() for each in (target, step, stop)])

    def transform(self, ridge: float) -> Tensor:
        """The map that is best on the sums, [D, D], float64."""
        penalty = ridge * self.gram.diagonal().mean().clamp_min(torch.finfo(self.gram.dtype).tiny)
        return solve(self.gram + penalty * torch.eye(len(self.gram)).to(self.gram), self.moment)

    def rehearse(self, few: Decoder) -> None:
        """Solve and fold."""
        fold(few, 0, self.transform(0.0))


def _rows(
    start: Tensor, stop: Tensor, mlp: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The MLP's output and both states as [tokens, D], float64."""
    assert mlp is not None
    width = start.shape[-1]
    mlp, start, stop = (x.reshape(-1, width).to(device, torch.float64) for x in (mlp, start, stop))
    return mlp, start, stop


@torch.no_grad()
def fold(decoder: Decoder, index: int, transform: Tensor) -> nn.Module:
    """A copy of a layer whose MLP output ``M`` becomes ``M T``.

    Args:
        decoder: The dense model; it is not changed.
        index: The layer.
        transform: ``T``, [D, D].

    Returns:
        A layer of the same class that has no tensor in common with the model.
    """
    (layer,) = [layer_copy(decoder, source) for source in at_hand(decoder, [index])]
    module, parameters = projection(layer, decoder.family.mlp_out)
    weight, *bias = parameters.values()
    t, before = transform.to(weight.device), weight.double()
    # Linear maps and experts keep [..., D, inner], GPT-2's Conv1D the transpose.
    weight.copy_(before @ t if isinstance(module, Conv1D) else t.T @ before)
    for shift in bias:
        shift.copy_(shift.double() @ t)
    return layer
