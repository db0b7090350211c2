"""Turn a path into a model of its own: a Hugging Face model with the path's modules as its layers.

Weights are shared with the dense model, module objects are not, so both stay usable. Everything
that counts layers is renumbered: ``num_hidden_layers``, per-layer lists in the config, and the
``layer_idx`` by which attention finds its place in the key-value cache.

Example:
    model = assemble(pruned.path(decoder))
    model.generate(input_ids)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path
from streamline.modeling.modeling_layers import LayerModule, Stack
from streamline.modeling.modeling_sublayers import number_caches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Config fields that hold one value per layer.
PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers")


def assemble(path: Path) -> PreTrainedModel:
    """Build the model that a path describes.

    Args:
        path: From :meth:`streamline.method.Pruned.path` or
        :func:`streamline.engine.paths.dense_path`.

    Returns:
        A model of the dense model's class, on the same device and in the same dtype, whose
        tensors are those of the dense model and of the path's own modules.
    """
    decoder = path.decoder
    parts = [(part, node.layer) for node in path.nodes for part in applications(node.module)]
    own = submodule(decoder.model, decoder.family.layers)
    model = cast("PreTrainedModel", shared_copy(decoder.model, {id(own): nn.ModuleList()}))
    kept = {id(decoder.config): model.config}
    layers = nn.ModuleList([shared_copy(part, kept) for part, _ in parts])
    for module in layers.modules():
        if isinstance(module, LayerModule):
            module.tuple_output = decoder.family.tuple_output
    parent, _, leaf = decoder.family.layers.rpartition(".")
    setattr(submodule(model, parent), leaf, layers)
    renumber(model, [layer for _, layer in parts], decoder)
    return model


def shared_copy(module: nn.Module, kept: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a module whose parameters and buffers are those of the original.

    Args:
        module: The original.
        kept: Further objects that are not to be copied: the replacement of each ``id``.
    """
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, {**memo, **(kept or {})})


def applications(module: nn.Module) -> list[nn.Module]:
    """A node's module as the layers of a model: one for each place it needs in the cache.

    A stack of layers with attention needs as many places as it has parts; anything else is one
    layer.
    """
    attends = any(getattr(m, "layer_idx", None) is not None for m in module.modules())
    if isinstance(module, Stack) and attends:
        return [part for inner in module.sequence() for part in applications(inner)]
    return [module]


def renumber(model: PreTrainedModel, origin: list[int], decoder: Decoder) -> None:
    """Make a model's config and cache indices agree with its list of layers.

    Args:
        model: The model whose layer list was changed.
        origin: For each of its layers, the index in the dense model.
        decoder: The dense model, whose config has the per-layer fields.
    """
    config = model.config
    for name in PER_LAYER_FIELDS:
        values = getattr(decoder.config, name, None)
        if isinstance(values, list) and len(values) == decoder.n_layers:
            setattr(config, name, [values[i] for i in origin])
    if hasattr(
        config, "mlp_only_layers"
    ):  # a mixture in which every so many layers have no experts
        dense, step = set(config.mlp_only_layers or ()), decoder.config.decoder_sparse_step
        dense |= {i for i in range(decoder.n_layers) if (i + 1) % step}
        config.mlp_only_layers = [i for i, layer in enumerate(origin) if layer in dense]
        config.decoder_sparse_step = 1
    config.num_hidden_layers = len(origin)
    layers = list(submodule(model, decoder.family.layers).children())
    number_caches(layers, config)
