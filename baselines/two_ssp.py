"""2SSP: narrow every MLP by its neurons' activations, then remove attentions by loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamline.calibration import Calibration, measure
from streamline.engine.assemble import assemble, shared_copy
from streamline.engine.budget import (
    Effort,
    check_sparsity,
    reading_flops,
    round_flops,
    statistics_flops,
    weights,
)
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.meter import counted
from streamline.engine.paths import Node, Path
from streamline.engine.transfer import Later
from streamline.errors import UnsupportedModelError
from streamline.fields import Count, Positive
from streamline.hashing import content_key
from streamline.method import Method, Pruned, Size
from streamline.methods.layers import odd_layer
from streamline.methods.loss import loss_sample, sample_shape
from streamline.methods.loss_search import LossSearch, whole_heads
from streamline.methods.sublayers import Sublayers, removal_spec
from streamline.modeling.modeling_sublayers import remove_modules
from streamline.plan import Plan
from streamline.progress import part, tell

from ._groups import channel_groups, shrink
from ._rounds import Round, keep_rounds, notes, resumed


@dataclass(frozen=True)
class Budget:
    """What a sparsity asks of both stages.

    Attributes:
        attentions: Attentions that go.
        channels: Channels that each layer's MLP gives up.
        removed: Parameters that go.
    """

    attentions: int
    channels: int
    removed: int


@dataclass(frozen=True, kw_only=True)
class TwoSSP(Method):
    """Narrow every MLP, then remove attentions by loss.

    With ``s`` the fraction of the layers' parameters that is to go, ``N = round(L *
    s^((|MLP| / |attention|) / power))`` attentions are removed, ``|.|`` the parameters of one. The
    MLPs give up what is left of ``s``, the same number of channels in every layer. A channel scores
    the norm over a sequence's tokens of what enters the projection out of the MLP, averaged over
    sequences; the highest stay. Then attentions are removed one by one, each time the one without
    which the narrowed model's loss on ``search_samples`` sequences is lowest.

    Attributes:
        n_samples: Calibration sequences that channels are scored on; None for all.
        search_samples: Sequences that the loss is measured on.
        power: The constant in the exponent: larger removes more attentions.

    Reference:
        2SSP, arXiv:2501.17771, sections 3.1 to 3.3.

    Differs from the paper:
        Its ``s`` is solved so that all parameters are counted, and the channels for what the
        rounding of N leaves, so that the count is nearest. The run's calibration texts instead of
        C4, in sequences of the run's length. At least one channel of a layer and one attention
        stay. Mixtures of experts are unsupported. The released code (GPL) was not read.
    """

    name: ClassVar[str] = "2ssp"
    paper: ClassVar[str] = "arXiv:2501.17771"
    returns_model: ClassVar[bool] = True

    n_samples: Count | None = 32
    search_samples: Count = 1
    power: Positive = 1.5

    def unsupported(self, decoder: Decoder) -> str | None:
        """Mixtures, and models whose layers are not those of their family, or differ in shape."""
        if decoder.family.mixture:
            return (
                f"{self.name} narrows one MLP a layer by its activations, and the experts of "
                f"{decoder.family.name} see different tokens"
            )
        reason = super().unsupported(decoder)
        odd = odd_layer(decoder, alike=True) if reason is None else None
        return reason if odd is None else f"{self.name} narrows every MLP alike, and {odd}"

    def calibration_key(self) -> str:
        """One pass per sample; the search belongs to a sparsity."""
        return f"{self.name}-{content_key([self.n_samples])[:12]}"

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Score every channel, as well as the shared statistics on the same tokens."""
        tokens = batches[: self.n_samples]
        scores = channel_scores(decoder, tokens)
        return replace(measure(decoder, tokens), extras={"channels": scores})

    def budget(self, decoder: Decoder, sparsity: float) -> Budget:
        """How much each stage removes.

        Args:
            decoder: A model; its weights may lie on the meta device.
            sparsity: Fraction of all parameters.

        Raises:
            UnsupportedModelError: If the stages cannot remove that much, or so little.
        """
        layers, dense = decoder.n_layers, decoder.n_parameters()
        wanted = check_sparsity(sparsity) * dense
        if wanted == 0:
            return Budget(0, 0, 0)
        channels = channel_groups(decoder, 0)
        out_bias = getattr(submodule(decoder.layers[0], decoder.family.mlp_out), "bias", None)
        mlp = channels.n_groups * channels.parameters
        mlp += 0 if out_bias is None else out_bias.numel()
        module = submodule(decoder.layers[0], decoder.family.attention)
        attention = sum(parameter.numel() for parameter in module.parameters())
        share = wanted / sum(decoder.layer_parameters(index) for index in range(layers))
        n = round(layers * min(share, 1.0) ** (mlp / attention / self.power))
        n = min(n, layers - 1)
        # With the norm that served it alone.
        per_attention = Sublayers(decoder).n_removed([(0, "attention")])
        per_channel = layers * channels.parameters
        left = wanted - n * per_attention
        width = max(0, min(round(left / per_channel), channels.n_groups - 1))
        removed = n * per_attention + width * per_channel
        if abs(removed - wanted) > max(per_channel, per_attention):
            raise UnsupportedModelError(
                f"sparsity {sparsity} cannot be reached by {self.name}: {n} attentions and {width} "
                f"of {channels.n_groups} channels of each layer of {decoder.name} are "
                f"{removed / dense:.1%} of the parameters; choose a "
                f"{'lower' if removed < wanted else 'higher'} sparsity, or another power"
            )
        return Budget(n, width, removed)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the shapes."""
        dense = decoder.n_parameters()
        return Size(dense, dense - self.budget(decoder, sparsity).removed)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The scores of the channels, and a round for each attention that goes."""
        seen = math.prod(sample_shape(shape, self.n_samples, None))
        tokens = math.prod(sample_shape(shape, self.search_samples, None))
        found, n = 0.0, decoder.n_layers
        for gone in range(self.budget(decoder, sparsity).attentions):
            heads = whole_heads(n - gone)
            found += round_flops(decoder, tokens, left=1 - sparsity, tried=n - gone, heads=heads)
        return Effort(statistics_flops(decoder, seen) + reading_flops(decoder, seen), found)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Narrow the MLPs, search the attentions of the narrowed model, and build it."""
        plan, budget = Plan.dense(decoder.n_layers), self.budget(decoder, sparsity)
        if budget.removed == 0:
            return Pruned(plan)
        kept = widest(calibration.extras["channels"], budget.channels)
        layers = [
            shrink(decoder, index, {"mlp": keep}) if budget.channels else layer
            for index, (layer, keep) in enumerate(zip(decoder.layers, kept, strict=True))
        ]
        tokens = loss_sample(batches, self.search_samples, None)
        rounds = search(decoder, layers, tokens, budget.attentions)
        gone = [each.unit for each in rounds]
        model = assemble(_path(decoder, layers, _without_attention(decoder, layers, gone)))
        facts: dict[str, Any] = {
            "removed_attentions": sorted(gone),
            "removed_channels": budget.channels,
            **notes(rounds, gone),
        }
        return Pruned(plan, model=model, notes=facts)


def widest(scores: Tensor, n_removed: int) -> list[list[int]]:
    """The channels of each layer that stay, in rising order; of equal ones the last.

    Args:
        scores: [L, channels].
        n_removed: How many of each layer go.
    """
    order = torch.sort(scores, dim=1, stable=True).indices
    return order[:, n_removed:].sort(dim=1).values.tolist()


def search(
    decoder: Decoder, layers: Sequence[nn.Module], tokens: Tensor, n_remove: int
) -> list[Round]:
    """Remove attentions one by one, each time the one whose absence costs least.

    Args:
        decoder: The dense model, which is entered and left.
        layers: The narrowed model's layers.
        tokens: Token ids of every trial, [N, T].
        n_remove: How many.
    """
    without = _without_attention(decoder, layers, range(len(layers)))
    paths = [_path(decoder, layers, {}), _path(decoder, layers, without)]
    rounds, losses = resumed([])[0], LossSearch(paths, tokens)
    while len(rounds) < n_remove:
        gone = {each.unit: without[each.unit] for each in rounds}
        tried = [index for index in range(len(layers)) if index not in gone]
        trials = [_path(decoder, layers, gone | {index: without[index]}) for index in tried]
        with part(len(rounds), n_remove):
            found = losses.least(trials)
        rounds.append(Round.of(tried[found.index], found))
        keep_rounds(rounds)
    return rounds


def _without_attention(
    decoder: Decoder, layers: Sequence[nn.Module], indices: Sequence[int]
) -> dict[int, nn.Module]:
    """Some layers without their attention; the narrowed projections are the layers' own."""
    found = {}
    for index in indices:
        layer = layers[index]
        spec = removal_spec(decoder, decoder.layers[index], "attention")
        narrowed = getattr(layer, "streamline_spec", None)
        if narrowed is not None:
            spec["linear"] = narrowed["linear"]
        copied = shared_copy(layer, {id(decoder.config): decoder.config})
        found[index] = remove_modules(copied, spec)
    return found


def _path(decoder: Decoder, layers: Sequence[nn.Module], changed: dict[int, nn.Module]) -> Path:
    nodes = (Node(changed.get(index, layer), index) for index, layer in enumerate(layers))
    return Path(decoder, tuple(nodes), TwoSSP.name)


@torch.no_grad()
def channel_scores(decoder: Decoder, tokens: Tensor, *, batch_tokens: int = 4096) -> Tensor:
    """The norm over tokens of what enters the projection out of each MLP, mean over sequences.

    Args:
        decoder: The dense model; left as it was.
        tokens: Token ids, [N, T].
        batch_tokens: Tokens per forward pass.

    Returns:
        Scores, [L, channels], float64.
    """
    rows = max(1, batch_tokens // tokens.shape[1])
    total, found = torch.zeros(1, dtype=torch.float64), list[Later]()
    for start in range(0, len(tokens), rows):
        some, norms = tokens[start : start + rows], list[Tensor]()
        with counted() as count, _watched(decoder, len(some), norms):
            count(some.numel(), lambda: weights(decoder, decoder.layers))
            entry = decoder.enter(some)
            hidden = entry.hidden
            for index, layer in enumerate(decoder.layers):
                hidden = decoder.run(layer, hidden, entry, index)
        found.append(Later(norms, lambda sums: torch.stack([each.double() for each in sums])))
        tell(start + len(some), len(tokens))
    for sums in found:  # when all batches are on their way
        total = total + sums.value()
    return total / len(tokens)


@contextmanager
def _watched(decoder: Decoder, batch: int, norms: list[Tensor]) -> Iterator[None]:
    """Note what enters each MLP's last projection, as norms summed over a batch, [channels]."""

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        states: Tensor = args[0]  # [B, T, channels], or [B * T, channels]
        each = states.float().reshape(batch, -1, states.shape[-1]).norm(dim=1)  # [B, channels]
        norms.append(each.sum(0))

    hooks = []
    try:
        for layer in decoder.layers:
            last = submodule(layer, decoder.family.mlp_out)
            hooks.append(last.register_forward_pre_hook(note))
        yield
    finally:
        for hook in hooks:
            hook.remove()
