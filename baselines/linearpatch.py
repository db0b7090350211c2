"""LinearPatch: drop a run of layers and rescale the states at the cut, channel by channel, rotated.

Massive values in a few channels of a few tokens would spoil channel-wise scales, so the channels
are mixed by an orthogonal rotation first, scaled there, and rotated back: one symmetric matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, reading_flops, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.engine.seed import seeded
from streamline.fields import Count, Natural, Positive
from streamline.method import Method, Pruned, Size
from streamline.methods.replacement import home
from streamline.methods.teacher_fits import Fit
from streamline.modeling.modeling_layers import LinearMap
from streamline.plan import Plan

from ._distilling import Distillation
from ._magnitudes import MagnitudeFit, magnitude_ratios


@dataclass(frozen=True, kw_only=True)
class LinearPatch(Method):
    """Drop a span and put a rescaling matrix at the cut.

    The matrix is ``H diag(s) H^T``, and ``s_k`` the mean over sequences of
    ``mean_t |x_stop H|_k / mean_t |x_start H|_k``. The span is the one of highest cosine. The
    matrix counts as parameters of the pruned model.

    Attributes:
        rotation: ``"hadamard"``, or ``"none"`` for scales without rotation.
        distill_epochs: Passes over the calibration tokens in which the matrix alone is trained to
            give the dense model's next-token distribution; 0 for none.
        learning_rate: Of the distillation, at its start: the paper's and the released run
            scripts'; the released program's own default is a tenth of it.
        top_k: How many of the dense model's likeliest tokens it compares: the paper's number; the
            released program keeps 50.
        step_tokens: Tokens of an optimiser step of it.

    Reference:
        LinearPatch, arXiv:2505.24680, section 3; its distillation as released.

    Differs from the released code:
        Hadamard matrices are built by Sylvester's and Paley's constructions; hidden sizes without
        one are rotated by the orthonormal cosine transform, named in the notes. The run is chosen
        by cosines of tokens; the released script's ``cosine_similarity`` runs over its default
        dimension, the tokens of a sequence, channel by channel, and leaves out runs that start at
        layer 0 or reach the last layer. Ratios are computed in float64 instead of float16.
        Distillation sees the run's calibration tokens (released: 5,000 sequences of 2048, prepared
        beforehand), and its divergence is averaged over the tokens, in float32 instead of mixed
        precision. As released it is AdamW with weight decay 1e-4, its rate falling by a cosine to a
        twentieth.
    """

    name: ClassVar[str] = "linearpatch"
    paper: ClassVar[str] = "arXiv:2505.24680"

    rotation: Literal["hadamard", "none"] = "hadamard"
    distill_epochs: Natural = 0
    learning_rate: Positive = 1e-4
    top_k: Annotated[Count, Field(ge=2)] = 100
    step_tokens: Count = 2048

    def __post_init__(self) -> None:
        """Distillation runs the whole model back and forth."""
        super().__post_init__()
        object.__setattr__(self, "supports_streaming", not self.distill_epochs)

    def n_remove(self, decoder: Decoder, sparsity: float) -> int:
        """How many layers are removed, the parameters of the matrix counted."""
        return layers_to_remove(decoder, sparsity, lambda n: decoder.hidden_size**2)

    @property
    def _turn(self) -> Callable[[int], Tensor] | None:
        """How channels are rotated."""
        return _rotation if self.rotation == "hadamard" else None

    def fits(self, decoder: Decoder, calibration: Calibration, sparsity: float) -> list[Fit]:
        """The sums for the chosen run."""
        n_remove = self.n_remove(decoder, sparsity)
        if n_remove == 0:
            return []
        return [MagnitudeFit(calibration.ranked_spans(n_remove)[0][0], self._turn)]

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Measure the scales of the chosen run and replace it by the matrix."""
        n_remove = self.n_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        span, cosine = calibration.ranked_spans(n_remove)[0]
        width = decoder.hidden_size
        turn, kind = torch.eye(width, dtype=torch.float64), "none"
        if self.rotation == "hadamard":
            turn, kind = orthogonal_rotation(width)
        scales = magnitude_ratios(decoder, batches, span, self._turn)
        with seeded(seed):
            patch = LinearMap(width, bias=False)
        patch.tuple_output = decoder.family.tuple_output
        with torch.no_grad():
            patch.map.weight.copy_((turn * scales) @ turn.T)
        device = home(decoder, span.start)
        distilled: dict[str, Any] = {}
        if self.distill_epochs:
            patch = patch.to(device)
            distillation = Distillation(decoder, span, patch, self.top_k)
            distilled["distillation"] = distillation.train(
                batches,
                epochs=self.distill_epochs,
                learning_rate=self.learning_rate,
                step_tokens=self.step_tokens,
                seed=seed,
            )
        patch = patch.to(device=device, dtype=decoder.dtype)
        notes: dict[str, Any] = {
            "span": [span.start, span.stop],
            "cosine": cosine,
            "rotation": kind,
            "scales": {"least": float(scales.min()), "most": float(scales.max())},
            **distilled,
        }
        plan = Plan.replace(decoder.n_layers, span, "linear-patch")
        return Pruned(plan, {span.start: patch}, notes=notes)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """A pass for the scales; in distilling, of teacher and patched model, and back."""
        tokens = math.prod(shape)
        rotating = 4.0 * tokens * decoder.hidden_size**2
        once = reading_flops(decoder, tokens) + rotating
        whole = reading_flops(decoder, tokens, head=True)
        distilling = 2 * whole * (self.distill_epochs + 2) + whole * self.distill_epochs
        more = distilling if self.distill_epochs else 0.0
        return Effort(statistics_flops(decoder, tokens), once + more, passes=1)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """Removed layers, less the matrix that is added."""
        n_remove = self.n_remove(decoder, sparsity)
        return Size.without(decoder, n_remove, decoder.hidden_size**2 if n_remove else 0)


def orthogonal_rotation(d: int) -> tuple[Tensor, str]:
    """An orthogonal matrix that spreads every channel over all others.

    A Hadamard matrix over ``sqrt(d)`` where one is built: ``d = 2^m k`` with ``k`` 1 or the order
    of a Paley matrix (``p + 1`` for primes ``p = 3 mod 4``, ``2 (p + 1)`` for ``p = 1 mod 4``);
    that covers the hidden sizes of common models, 576 = 16 * 36 and 2560 = 128 * 20 among them.
    Elsewhere the orthonormal cosine transform (DCT-II), which is deterministic as well but does not
    weigh all channels alike.

    Args:
        d: The order, at least 1.

    Returns:
        The matrix [d, d], float64, and ``"hadamard"`` or ``"cosine"``.
    """
    twos = (d & -d).bit_length() - 1
    for power in range(twos, -1, -1):
        core = _paley(d >> power)
        if core is not None:
            sylvester = torch.ones(1, 1, dtype=torch.float64)
            for _ in range(power):
                sylvester = torch.kron(
                    torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), sylvester
                )
            return torch.kron(sylvester, core) / math.sqrt(d), "hadamard"
    index = torch.arange(d, dtype=torch.float64)
    matrix = torch.cos(math.pi / d * torch.outer(index + 0.5, index)) * math.sqrt(2.0 / d)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix, "cosine"


def _rotation(d: int) -> Tensor:
    """The matrix of :func:`orthogonal_rotation`."""
    return orthogonal_rotation(d)[0]


def _paley(order: int) -> Tensor | None:
    """A Hadamard matrix of order 1, 2, or by Paley's constructions over a prime field."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    first, second = order - 1, order // 2 - 1
    if order % 4 == 0 and first % 4 == 3 and _is_prime(first):
        skew = _bordered(first, -1.0)
        return skew + torch.eye(order, dtype=torch.float64)
    if order % 4 == 0 and second % 4 == 1 and _is_prime(second):
        conference = _bordered(second, 1.0)
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        eye = torch.eye(order // 2, dtype=torch.float64)
        return torch.kron(conference, plus) + torch.kron(eye, minus)
    return None


def _bordered(p: int, sign: float) -> Tensor:
    """Jacobsthal's matrix of quadratic characters over a prime p, with a border, [p + 1, p + 1]."""
    squares = {(x * x) % p for x in range(1, p)}
    character = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, p)])
    index = torch.arange(p)
    matrix = torch.zeros(p + 1, p + 1, dtype=torch.float64)
    matrix[1:, 1:] = character[(index[:, None] - index[None, :]) % p].double()
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = sign
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))
