"""Prune&Comp: after each removed layer, scale what lies before it to the magnitude that is missing.

One layer goes at a time, and the next one is chosen on the model as it then is. The factor is
folded into weights, so the checkpoint is a plain one with fewer layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from streamline.calibration import Calibration, measure
from streamline.engine.assemble import assemble
from streamline.engine.budget import (
    Effort,
    layers_to_remove,
    reading_flops,
    round_flops,
    statistics_flops,
)
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import dense_path
from streamline.errors import UnsupportedModelError
from streamline.fields import Count, Length
from streamline.method import Method, Pruned, Size
from streamline.methods.layers import odd_layer, projection
from streamline.methods.loss import loss_sample, path_losses, sample_shape
from streamline.methods.unfinished import keep_unfinished, unfinished
from streamline.plan import Plan, Span
from streamline.progress import part

from ._magnitudes import magnitude_ratios

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class PruneAndComp(Method):
    """Remove layers one by one and rescale what is left.

    A removed layer changes the mean magnitude of channel ``c`` by ``r_c``, the mean over samples of
    ``mean_t |x_out[c]| / mean_t |x_in[c]|``; the factor is the mean of ``r_c`` over the channels.
    The embeddings and all that the layers before write into the residual stream are multiplied by
    it: since every layer reads through a norm, they compute what they did, at that magnitude. Of a
    mixture all experts are multiplied, and the router chooses as it did.

    Attributes:
        criterion: What the next layer is chosen by, on the model as it is by then:
            ``"influence"``, the lowest block influence, or ``"loss"``, the lowest loss without it.
        n_samples: Calibration sequences that a loss looks at; None for all.
        length: Tokens of each; None for all.

    Reference:
        Prune&Comp, arXiv:2507.18212.

    Differs from the released code:
        With tied embeddings the factor is divided out of the final norm, which is exact; there, the
        head is scaled along or untied. Biases and learned positions are scaled too. The last layer
        can be chosen. Criteria by gradients and of a whole span are left out, and the run's
        calibration texts stand in for 128 sequences of 2048 tokens of WikiText-2. A norm's small
        constant makes the scaling inexact, there as here. Families that normalise what a layer
        writes (Gemma 2 and 3, OLMo 2, OPT-350m) or their embeddings (Bloom) are unsupported.
    """

    name: ClassVar[str] = "prune-and-comp"
    paper: ClassVar[str] = "arXiv:2507.18212"
    returns_model: ClassVar[bool] = True

    criterion: Literal["influence", "loss"] = "influence"
    n_samples: Count | None = 10
    length: Length | None = 128

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models in which a factor does not pass through what lies before the cut."""
        family = decoder.family
        if family.extra_norms or not getattr(decoder.config, "do_layer_norm_before", True):
            return (
                f"{self.name} scales what layers write into the residual stream, and "
                f"{decoder.name} normalises it"
            )
        if family.name == "bloom":
            return f"{self.name} scales the embeddings, and {decoder.name} normalises them"
        odd = odd_layer(decoder)
        if odd is not None:
            return f"{self.name} scales the projections of every layer, and {odd}"
        return super().unsupported(decoder)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Choose, remove and compensate, layer by layer.

        Raises:
            UnsupportedModelError: If no layer would be left.
        """
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        if n_remove >= decoder.n_layers:
            raise UnsupportedModelError(
                f"{self.name} chooses among the layers that are left, so at most "
                f"{decoder.n_layers - 1} of {decoder.n_layers} can be removed; choose a lower "
                "sparsity"
            )
        alive, current, model = list(range(decoder.n_layers)), decoder, decoder.model
        found = unfinished() or {"order": [], "factors": []}
        order, factors = found["order"], found["factors"]
        for n_done in range(n_remove):
            with part(n_done, n_remove):
                searched = n_done == len(order)
                if searched:
                    index = self._next(current, None if n_done else calibration, batches)
                    ratios = magnitude_ratios(current, batches, Span(index, index + 1))
                    order.append(alive[index])
                    factors.append(float(ratios.mean()))
                index = alive.index(order[n_done])
                model = without(current, index, factors[n_done])
                del alive[index]
                current = Decoder(model)
                if searched:
                    keep_unfinished({"order": order, "factors": factors})
        notes: dict[str, Any] = {"order": order, "factors": factors}
        return Pruned(Plan.drop(decoder.n_layers, order), model=model, notes=notes)

    def _next(self, decoder: Decoder, found: Calibration | None, batches: Tensor) -> int:
        """The layer of a model that goes next; the deeper one of equal scores."""
        if self.criterion == "influence":
            scores = (found or measure(decoder, batches)).influence.tolist()
        else:
            paths = [dense_path(decoder).without(i) for i in range(decoder.n_layers)]
            scores = path_losses(paths, loss_sample(batches, self.n_samples, self.length))
        return min(range(len(scores)), key=lambda i: (scores[i], -i))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """For each layer that goes the scores, and a pass for its factor."""
        n, tokens = decoder.n_layers, math.prod(shape)
        few = math.prod(sample_shape(shape, self.n_samples, self.length))
        found = 0.0
        for gone in range(layers_to_remove(decoder, sparsity)):
            left = 1 - (gone + 1) / n
            found += 0.75 * reading_flops(decoder, tokens) * left
            if self.criterion == "loss":
                found += round_flops(decoder, few, left=left, tried=n - gone, heads=n - gone)
            elif gone:
                found += statistics_flops(decoder, tokens) * left
        return Effort(statistics_flops(decoder, tokens), found)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would be removed; the factors add nothing."""
        return Size.without(decoder, layers_to_remove(decoder, sparsity))


@torch.no_grad()
def without(decoder: Decoder, index: int, factor: float) -> PreTrainedModel:
    """A model without one of its layers, all before it scaled.

    Args:
        decoder: The model; its tensors are not written to, and those that stay are shared.
        index: The layer.
        factor: What the residual stream is multiplied by where the layer was, above 0.

    Returns:
        A model of its own.

    Raises:
        UnsupportedModelError: If the factor is no positive number.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise UnsupportedModelError(
            f"layer {index} of {decoder.name} changes the magnitude of its input by {factor}, "
            "which no factor makes up for"
        )
    plan, family = Plan.drop(decoder.n_layers, [index]), decoder.family
    model = assemble(Pruned(plan).path(decoder))
    embeddings: Any = model.get_input_embeddings()
    head: Any = submodule(model, family.head)
    tied = head.weight is embeddings.weight
    _scale(embeddings, factor)
    if tied:
        head.weight = embeddings.weight
        _scale(submodule(model, family.norm), 1.0 / factor)
    if family.positions:
        _scale(submodule(model, family.positions), factor)
    for layer in list(submodule(model, family.layers).children())[:index]:
        for path in (family.o, family.mlp_out):
            module, parameters = projection(layer, path)
            _scale(module, factor, parameters)
    return model


def _scale(module: Any, factor: float, names: Iterable[str] = ("weight", "bias")) -> None:
    """Multiply some parameters of a module, as new tensors: the old ones may be shared."""
    for name in names:
        old = getattr(module, name, None)
        if old is not None:
            new = nn.Parameter(old.detach() * factor, requires_grad=old.requires_grad)
            setattr(module, name, new)
