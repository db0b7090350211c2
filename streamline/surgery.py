"""Turn a path into a model of its own: a plain Hugging Face model with the path's modules as its layers.

Weights are shared with the dense model, module objects are not, so both stay usable. Everything that counts
layers is renumbered: ``num_hidden_layers``, per-layer lists in the config, and the ``layer_idx`` by which
attention finds its place in the key-value cache.

Example:
    model = assemble(pruned.path(decoder))
    model.generate(input_ids)
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from streamline.decoder import Decoder, submodule
from streamline.paths import Path

#: Config fields that hold one value per layer.
PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers")


def assemble(path: Path) -> PreTrainedModel:
    """Build the model that a path describes.

    Args:
        path: From :meth:`streamline.method.Pruned.path` or :func:`streamline.paths.dense_path`.

    Returns:
        A model of the dense model's class, on the same device and in the same dtype, whose
        tensors are those of the dense model and of the path's own modules.
    """
    decoder = path.decoder
    modules = [decoder.model, *(node.module for node in path.nodes)]
    memo: dict[int, Any] = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    model = cast("PreTrainedModel", copy.deepcopy(decoder.model, memo))
    layers = nn.ModuleList([copy.deepcopy(node.module, memo) for node in path.nodes])
    parent, _, leaf = decoder.family.layers.rpartition(".")
    setattr(submodule(model, parent), leaf, layers)
    renumber(model, [node.layer for node in path.nodes], decoder)
    return model


def renumber(model: PreTrainedModel, origin: list[int], decoder: Decoder) -> None:
    """Make a model's config and cache indices agree with its list of layers.

    Args:
        model: The model whose layer list was changed.
        origin: For each of its layers, the index in the dense model.
        decoder: The dense model, whose config the per-layer fields are taken from.
    """
    config = model.config
    for name in PER_LAYER_FIELDS:
        values = getattr(decoder.config, name, None)
        if isinstance(values, list) and len(values) == decoder.n_layers:
            setattr(config, name, [values[i] for i in origin])
    config.num_hidden_layers = len(origin)
    layers = list(submodule(model, decoder.family.layers).children())
    number_caches(layers, config)


def number_caches(layers: list[nn.Module], config: Any) -> None:
    """Give each layer with attention its place in the key-value cache.

    A layer without attention stores nothing there. The cache's length is read from its first
    place, so places are counted over the layers that have attention; where layers differ in type
    (full and sliding attention) each keeps the place of its position, whose type the cache takes
    from the config.

    Args:
        layers: The model's layers, in order.
        config: The model's config.
    """
    by_position = len(set(getattr(config, "layer_types", None) or ())) > 1
    place = 0
    for position, layer in enumerate(layers):
        owners = [m for m in layer.modules() if getattr(m, "layer_idx", None) is not None]
        for owner in owners:
            owner.layer_idx = position if by_position else place  # type: ignore[assignment]
        place += bool(owners)
        if hasattr(layer, "attention_type") and by_position:
            layer.attention_type = config.layer_types[position]
