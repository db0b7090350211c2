"""SliceGPT: rotate the residual stream onto its principal directions and drop the last ones.

Every layer stays, each narrower; what runs is a model of its own, with a small matrix on the
residual at each addition. Those matrices and the head, which can no longer be tied, are counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import (
    Effort,
    check_sparsity,
    mean_layer_parameters,
    reading_flops,
    removed_fraction,
    statistics_flops,
)
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.fields import Count, Positive
from streamline.method import Method, Pruned, Size
from streamline.methods.layers import odd_layer
from streamline.plan import Plan

from ._sliced_shapes import sliced_parameters
from ._slicing import Basis, principal, slice_model, turned


@dataclass(frozen=True, kw_only=True)
class SliceGPT(Method):
    """Narrow the whole model to its principal directions.

    The first ``d`` principal directions of what every norm reads are kept; ``d`` meets the
    sparsity, shortcuts and untied head counted: 25 % of Llama-2-7B is a third of the width, 25 % of
    SmolLM2-135M half of it, and OPT-125M is refused.

    Attributes:
        orientation: ``"random"`` turns the kept directions by a random rotation, drawn from the
            run's seed; ``"pca"`` leaves them in order of variance.
        round_interval: ``d`` is a multiple of it.
        max_slicing: Largest fraction of the width that may be removed. A sparsity that needs more
            is refused with the count: on small models with a tied head, untying costs what slicing
            saves.

    Reference:
        SliceGPT, arXiv:2401.15024, section 3.

    Differs from the released code:
        The sparsity is not a slicing level but the counted parameters, and the width is solved for
        it. The mean is removed from the embeddings of LayerNorm models only (released: always,
        which changes RMSNorm models). Norms keep the model's own eps (released: 1e-5). The random
        rotation is seeded. Calibration text is the run's, not WikiText-2. Residual dropout is that
        of the family. A block with parallel sublayers has one basis. The released package cannot be
        wrapped: it pins transformers 4.42.4, whose layer classes it subclasses, and covers only
        Llama, OPT and Phi; `benchmarks/compare_slicegpt.py` compares with it. GPT-2 (its forward
        fixes the last width), Gemma 2 and 3 and OLMo 2 (norms before the addition), mixtures of
        experts, Falcon and Bloom are unsupported.
    """

    name: ClassVar[str] = "slicegpt"
    paper: ClassVar[str] = "arXiv:2401.15024"
    returns_model: ClassVar[bool] = True
    families: ClassVar[tuple[str, ...]] = (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "opt",
        "gpt_neox",
    )

    orientation: Literal["random", "pca"] = "random"
    round_interval: Count = 8
    max_slicing: Annotated[Positive, Field(lt=1)] = 0.5

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models whose norms are not all directly between residual and projections."""
        config: Any = decoder.config
        if decoder.family.extra_norms:
            return (
                f"{self.name} rotates what is added to the residual, and {decoder.family.name} "
                "puts a norm with a scale of its own between the projection and the residual"
            )
        if decoder.family.mixture:
            return (
                f"{self.name} slices the projections of one MLP a layer, and the layers of "
                f"{decoder.family.name} have a router and experts in its place"
            )
        if not getattr(config, "do_layer_norm_before", True):
            return f"{self.name} needs norms before the projections; {decoder.name} has them after"
        if getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
            return f"{self.name} needs embeddings of the hidden size; {decoder.name} projects them"
        if decoder.family.name == "gpt2":
            return (
                f"{self.name} lets the last layer write in full width, and {decoder.family.name} "
                "gives its output the width of the embeddings"
            )
        odd = odd_layer(decoder)
        if odd is not None:
            return f"{self.name} slices the projections of every layer, and {odd}"
        return super().unsupported(decoder)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Solve the width, then rotate and slice from the embeddings to the head."""
        plan = Plan.dense(decoder.n_layers)
        if check_sparsity(sparsity) == 0.0:
            return Pruned(plan)
        width = self.width(decoder, sparsity)
        basis: Basis = principal
        if self.orientation == "random":
            basis = turned(principal, width, torch.Generator().manual_seed(seed))
        model = slice_model(decoder, width, batches, basis)
        notes = {
            "width": width,
            "slicing": 1.0 - width / decoder.hidden_size,
            "parameters": sliced_parameters(decoder, width),
        }
        return Pruned(plan, model=model, notes=notes)

    def rehearse(self, decoder: Decoder, few: Decoder, batches: Tensor, sparsity: float) -> None:
        """Slice: the states of all tokens, one layer's matrices in float64, the new model."""
        slice_model(few, self.width(decoder, sparsity), batches, principal)

    def width(self, decoder: Decoder, sparsity: float) -> int:
        """The width that comes nearest to a sparsity, of those that make the model smaller.

        Raises:
            UnsupportedModelError: If the model would not shrink, or not nearly enough, with
                the arithmetic.
        """
        hidden, step = decoder.hidden_size, self.round_interval
        narrowest = max(step, -(-int(hidden * (1.0 - self.max_slicing)) // step) * step)
        widths = list(range(narrowest, hidden + 1, step))
        dense = decoder.n_parameters()
        if not widths:
            raise UnsupportedModelError(
                f"{self.name} keeps a multiple of round_interval={step} directions, and "
                f"{decoder.name} has only {hidden}; set a smaller round_interval"
            )

        def fraction(width: int) -> float:
            return removed_fraction(dense, sliced_parameters(decoder, width)["total"])

        index = bisect_left(widths, -sparsity, key=lambda width: -fraction(width))
        near = [w for w in widths[max(0, index - 1) : index + 1] if fraction(w) > 0.0]
        tolerance = mean_layer_parameters(decoder) / dense / 2
        if not near or fraction(near[0]) < sparsity - tolerance and near[0] == narrowest:
            raise UnsupportedModelError(self._arithmetic(decoder, sparsity, narrowest))
        return min(near, key=lambda width: (abs(fraction(width) - sparsity), -width))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """One pass, with the states turned and their moments taken twice in each layer."""
        tokens, width = math.prod(shape), decoder.hidden_size
        times = 2 * decoder.n_layers + 1
        turning = 6.0 * tokens * width**2 * times
        return Effort(
            statistics_flops(decoder, tokens),
            reading_flops(decoder, tokens) + turning,
            algebra=9.0 * width**3 * times,  # eigenvectors of a symmetric matrix
        )

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count of the solved width."""
        dense = decoder.n_parameters()
        if check_sparsity(sparsity) == 0.0:
            return Size(dense, dense)
        return Size(dense, sliced_parameters(decoder, self.width(decoder, sparsity))["total"])

    def _arithmetic(self, decoder: Decoder, sparsity: float, width: int) -> str:
        dense, parts = decoder.n_parameters(), sliced_parameters(decoder, width)
        removed = removed_fraction(dense, parts["total"])
        verb = f"removes {removed:.1%}" if removed > 0 else f"adds {-removed:.1%}"
        return (
            f"{self.name} cannot remove {sparsity:.1%} of {decoder.name}: slicing "
            f"{decoder.hidden_size} to {width} leaves embeddings {parts['embeddings']:,} + untied "
            f"head {parts['head']:,} + blocks {parts['blocks']:,} + shortcuts "
            f"{parts['shortcuts']:,} = {parts['total']:,} of {dense:,} parameters, which {verb}; "
            f"max_slicing={self.max_slicing} and round_interval={self.round_interval} allow no "
            "better: choose another sparsity or change them"
        )
