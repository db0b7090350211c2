"""Half a decoder layer: a copy without its attention or without its MLP.

The unit of methods that prune below the layer. The copy shares its weights with the dense model's
layer and is called in the same way; norms that only served the missing half are gone with it.

Example:
    module = without(decoder, 12, "attention")
    Pruned(plan, modules={12: module})           # with Step(12, kind="no-attention") in the plan
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.modeling.modeling_layers import Spec, cut

Part = Literal["attention", "mlp"]


def without(decoder: Decoder, index: int, part: Part) -> nn.Module:
    """A layer without one of its halves.

    Args:
        decoder: The dense model; it is not changed.
        index: The layer.
        part: ``"attention"`` or ``"mlp"``.

    Returns:
        A layer that shares the remaining weights with the dense model's.

    Raises:
        ConfigError: If ``part`` is neither of the two.
    """
    kept = {id(decoder.config): decoder.config}
    layer = decoder.layers[index]
    return cut(shared_copy(layer, kept), cut_spec(decoder, layer, part))


def cut_spec(decoder: Decoder, layer: nn.Module, part: Part) -> Spec:
    """What ``cut`` in :mod:`streamline.modeling.modeling_layers` needs to take a half out.

    Raises:
        ConfigError: If ``part`` is neither ``"attention"`` nor ``"mlp"``.
    """
    family = decoder.family
    norms = unused_norms(decoder, layer, part)
    if part == "attention":
        return {"kind": "no-attention", "attention": [family.attention], "identity": norms}
    if part != "mlp":
        raise ConfigError(f'a layer can lose its "attention" or its "mlp", got {part!r}')
    if family.mlp:
        return {"kind": "no-mlp", "zero": [family.mlp], "identity": norms}
    inner = [*family.mlp_in, *norms]
    return {"kind": "no-mlp", "zero": [family.mlp_out], "identity": inner}


def unused_norms(decoder: Decoder, layer: nn.Module, part: Part) -> list[str]:
    """The norms of a layer that serve only one of its halves.

    None do where the norms lie behind the addition (OPT-350m), where the residual is taken behind
    them, or where both halves read one norm.
    """
    family, config = decoder.family, decoder.config
    if not getattr(config, "do_layer_norm_before", True):
        return []
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        return []
    if hasattr(layer, "ln_attn") and hasattr(layer, "ln_mlp"):
        return ["ln_attn" if part == "attention" else "ln_mlp"]
    if not hasattr(layer, family.mlp_norm):
        return []
    first = part == "attention"
    norms = [family.attention_norm if first else family.mlp_norm]
    if len(family.extra_norms) == 2:
        norms.append(family.extra_norms[0 if first else 1])
    return norms
