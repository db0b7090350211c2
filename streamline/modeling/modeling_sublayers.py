"""Decoder layers without their attention or MLP, and what that means for the key-value cache.

Like :mod:`streamline.modeling.modeling_layers`, this file stands alone and is copied into
checkpoints.

Example:
    remove_modules(layer, {"kind": "no-attention", "attention": ["self_attn"]})
    number_caches(layers, config)              # only layers with attention use the cache

Notation: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .modeling_layers import Spec, builder
from .modeling_narrow import resize


class ZeroModule(nn.Module):
    """Replaces an attention or an MLP that was removed: its output is zero.

    Layers that leave the addition to their sublayers pass the residual, which is returned as it is.

    Args:
        pair: Whether the caller expects ``(output, attention weights)``.
    """

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Zeros of the shape of the hidden states [B, T, D], or the residual."""
        output = torch.zeros_like(hidden_states) if residual is None else residual
        return (output, None) if self.pair else output


def remove_modules(layer: nn.Module, spec: Spec) -> nn.Module:
    """Remove the attention or the MLP of a decoder layer, in place.

    Args:
        layer: A decoder layer; it is changed.
        spec: ``kind``, and lists of attribute names: ``attention`` (replaced by a
            :class:`ZeroModule` with a pair of outputs), ``zero`` (by a :class:`ZeroModule`) and
            ``identity`` (projections and norms without a use any more). ``linear`` says which
            shapes projections have that were made narrower before.

    Returns:
        The same layer, which now carries the spec.
    """
    for name in spec.get("attention", ()):
        setattr(layer, name, ZeroModule(pair=True))
        if hasattr(layer, "layer_idx"):  # a layer that keeps its attention's index has none now
            layer.layer_idx = None  # type: ignore[assignment]
    for name in spec.get("zero", ()):
        setattr(layer, name, ZeroModule(pair=False))
    for name in spec.get("identity", ()):
        setattr(layer, name, nn.Identity())
    layer.__dict__["streamline_spec"] = dict(spec)
    return layer


def number_caches(layers: list[nn.Module], config: Any) -> None:
    """Give each layer with attention its index in the key-value cache.

    A layer without attention stores nothing there, but the cache's length and masks are read from
    its first index of each type (full or sliding attention). So layers without attention take the
    type of the first layer that has it, and the layers with attention take, in order, the first
    indices of their own type.

    Args:
        layers: The model's layers, in order; the ``layer_idx`` of their modules is set.
        config: The model's config; its ``layer_types`` is changed for layers without attention.
    """
    owners = [
        [m for m in layer.modules() if getattr(m, "layer_idx", None) is not None]
        for layer in layers
    ]
    types = list(getattr(config, "layer_types", None) or ["one"] * len(layers))
    first = next((kind for kind, own in zip(types, owners, strict=True) if own), None)
    types = [kind if own else first or kind for kind, own in zip(types, owners, strict=True)]
    if getattr(config, "layer_types", None):
        config.layer_types = types
    free = {kind: [i for i, other in enumerate(types) if other == kind] for kind in set(types)}
    for kind, own in zip(types, owners, strict=True):
        if own:
            index = free[kind].pop(0)
            for module in own:
                module.layer_idx = index  # type: ignore[assignment]


@builder("no-attention")
@builder("no-mlp")
def _without_sublayer(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    if "linear" in spec:
        resize(layer, spec)
    return remove_modules(layer, spec)
