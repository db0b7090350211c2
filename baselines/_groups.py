"""Coupled groups of a decoder layer: what is removed together with a head or a channel.

A group of attention is a key-value head with its query heads: rows of q, k and v and the columns of
o that they feed. A group of the MLP is one channel: a row of each projection into it (gate and up)
and a column of the one out of it. Biases belong to their rows. Groups are known from the
config alone, so pruned sizes are counted without weights.

Example:
    attention, mlp = layer_groups(decoder, 0)
    attention.n_groups, attention.parameters       # heads, parameters of one of them
    shrink(decoder, 0, {"attention": [0, 2], "mlp": range(48)})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder, submodule
from streamline.modeling.modeling_layers import Spec
from streamline.modeling.modeling_narrow import resize


@dataclass(frozen=True)
class Member:
    """The part of one projection that belongs to the groups of a layer.

    Attributes:
        path: Path from the layer to the projection.
        side: ``"out"`` if groups own its outputs (rows and biases), ``"in"`` if its inputs.
        index: Which of them each group owns, [groups, owned], int64.
    """

    path: str
    side: str
    index: Tensor


@dataclass(frozen=True)
class Coupling:
    """All groups of one kind in a layer.

    Attributes:
        kind: ``"attention"`` or ``"mlp"``.
        members: The projections that the groups consist of.
        size: Rows by which a group is counted: the size of a head, 1 for a channel.
        parameters: Parameters of one group.
    """

    kind: str
    members: tuple[Member, ...]
    size: int
    parameters: int

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.members[0].index)


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model: G key-value heads, each with ``queries`` query heads."""

    groups: int
    queries: int
    size: int

    @classmethod
    def of(cls, decoder: Decoder) -> Heads:
        """Read a model's config."""
        config: Any = decoder.config
        n_heads = int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or n_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
        return cls(groups, n_heads // groups, size)


def reason_against(decoder: Decoder) -> str | None:
    """Why a model's layers have no such groups, or None if they do."""
    family = decoder.family
    if family.mixture:
        return (
            f"channels cannot be removed from {family.name} by their gradients: its experts see "
            "different tokens, so that scores of one say nothing beside those of another"
        )
    attention = submodule(decoder.layers[0], family.attention) if decoder.layers else None
    norm = getattr(attention, "q_norm", None)
    if norm is not None and norm.weight.numel() != Heads.of(decoder).size:
        return (
            f"heads cannot be removed from {family.name}: it normalises the queries of all heads "
            "together"
        )
    if family.fused and not family.qkv_layout:
        return (
            f"heads cannot be removed from {family.name}: its fused projection and its position "
            "biases are laid out for all heads of the model at once"
        )
    return None


def layer_groups(decoder: Decoder, layer: int) -> list[Coupling]:
    """The groups of one layer: those of its attention, then those of its MLP.

    Args:
        decoder: A model of a supported family; its weights may lie on the meta device.
        layer: Index of the layer.
    """
    family, heads = decoder.family, Heads.of(decoder)
    module = decoder.layers[layer]
    blocks = torch.arange(heads.groups * heads.size)
    blocks = blocks.view(heads.groups, heads.size)  # [groups, head size]
    queries = torch.arange(heads.groups * heads.queries * heads.size)
    queries = queries.view(heads.groups, -1)  # [groups, queries * head size]
    if not family.fused:
        attention = [Member(family.q, "out", queries)]
        attention += [Member(path, "out", blocks) for path in (family.k, family.v)]
    elif family.qkv_layout == "blocks":
        keys = queries.numel() + blocks
        # [groups, (queries + key + value) * head size]
        index = torch.cat([queries, keys, blocks.numel() + keys], dim=1)
        attention = [Member(family.qkv, "out", index)]
    else:
        index = torch.arange(3 * blocks.numel())
        index = index.view(heads.groups, -1)  # [groups, 3 * head size]
        attention = [Member(family.qkv, "out", index)]
    attention.append(Member(family.o, "in", queries))
    return [_coupling(module, "attention", attention, heads.size), channel_groups(decoder, layer)]


def channel_groups(decoder: Decoder, layer: int) -> Coupling:
    """The channels of one layer's MLP; every family has them.

    Args:
        decoder: A model; its weights may lie on the meta device.
        layer: Index of the layer.
    """
    family, module = decoder.family, decoder.layers[layer]
    channels = torch.arange(shape(submodule(module, family.mlp_out))[1])
    channels = channels.unsqueeze(1)  # [channels, 1]
    mlp = []
    for path in family.mlp_in:
        parts = shape(submodule(module, path))[0] // len(channels)
        index = torch.cat([part * len(channels) + channels for part in range(parts)], dim=1)
        mlp.append(Member(path, "out", index))
    mlp.append(Member(family.mlp_out, "in", channels))
    return _coupling(module, "mlp", mlp, 1)


def _coupling(layer: nn.Module, kind: str, members: Sequence[Member], size: int) -> Coupling:
    total = 0
    for member in members:
        linear = submodule(layer, member.path)
        n_out, n_in = shape(linear)
        if member.side == "out":
            total += member.index.shape[1] * (n_in + (linear.bias is not None))
        else:
            total += member.index.shape[1] * n_out
    return Coupling(kind, tuple(members), size, total)


def shape(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a projection."""
    weight: Any = linear.weight
    n_out, n_in = weight.shape if isinstance(linear, nn.Linear) else weight.T.shape
    return n_out, n_in


def rows(linear: nn.Module, weight: Tensor) -> Tensor:
    """A tensor laid out like a projection's weight as [outputs, inputs]."""
    return weight if isinstance(linear, nn.Linear) else weight.T


def group_sums(coupling: Coupling, sums: dict[tuple[str, str], Tensor]) -> Tensor:
    """Add up per-row and per-column values to one value per group.

    Args:
        coupling: The groups.
        sums: For each member's ``(path, side)`` one value per output or input.

    Returns:
        One value per group, [groups], float64, on the CPU.
    """
    total = torch.zeros(coupling.n_groups, dtype=torch.float64)
    for member in coupling.members:
        values = sums[member.path, member.side].to("cpu", torch.float64)
        total += values[member.index].sum(1)
    return total


def shrink(decoder: Decoder, layer: int, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """A layer with only some of its groups.

    Args:
        decoder: The dense model; it is not changed.
        layer: Index of the layer.
        keep: For ``"attention"`` and ``"mlp"``, or for the latter alone, the groups that stay, in
            rising order.

    Returns:
        A layer of the same class. Its norms, and an attention that keeps all its heads, are the
        dense model's; other projections are copies.
    """
    source = decoder.layers[layer]
    whole = "attention" not in keep
    groups = [channel_groups(decoder, layer)] if whole else layer_groups(decoder, layer)
    selected = dict(_selected(groups, keep))
    linear = {}
    for path in selected:
        n_out, n_in = shape(submodule(source, path))
        for side, index in selected[path].items():
            n_out, n_in = (len(index), n_in) if side == "out" else (n_out, len(index))
        linear[path] = [n_out, n_in]
    spec: Spec = {"kind": "resized", "linear": linear}
    if not whole:
        spec |= _head_fields(decoder, source, len(keep["attention"]))
    small = resize(shared_copy(source, {id(decoder.config): decoder.config}), spec)
    with torch.no_grad():
        for path, sides in selected.items():
            before: Any = submodule(source, path)
            after: Any = submodule(small, path)
            weight, bias = rows(before, before.weight), before.bias
            for side, index in sides.items():
                index = index.to(weight.device)
                weight = weight.index_select(0 if side == "out" else 1, index)
                bias = bias[index] if side == "out" and bias is not None else bias
            rows(after, after.weight).copy_(weight)
            if bias is not None:
                after.bias.copy_(bias)
    return small


def _selected(
    couplings: Sequence[Coupling], keep: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """For each projection the outputs or inputs that stay, in rising order."""
    for coupling in couplings:
        groups = torch.tensor(list(keep[coupling.kind]))
        for member in coupling.members:
            yield member.path, {member.side: member.index[groups].flatten().sort().values}


def _head_fields(decoder: Decoder, layer: nn.Module, groups: int) -> Spec:
    """The attributes of an attention module that hold its number of heads, for fewer heads."""
    family, heads = decoder.family, Heads.of(decoder)
    attention = submodule(layer, family.attention)
    fewer = {
        "num_heads": groups * heads.queries,
        "num_key_value_heads": groups,
        "split_size": groups * heads.size,
    }
    found = {name: value for name, value in fewer.items() if hasattr(attention, name)}
    spec: Spec = {"attributes": {family.attention: found}} if found else {}
    if family.qkv_layout == "blocks" and "num_key_value_heads" in found:
        seen = {"num_attention_heads": groups * heads.queries}
        spec["config"] = {family.attention: seen}
    return spec
