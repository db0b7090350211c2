"""The weights of a model's layers, and whether they are what a method takes them for.

Checkpoints of pruned models are models too, and may hold networks in place of layers, layers
without an attention, or fewer heads in some.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from torch import nn

from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.streaming.decoder import StreamedDecoder

__all__ = ["at_hand", "layer_copy", "odd_layer", "projection"]


def at_hand(decoder: Decoder, indices: Sequence[int]) -> Iterator[nn.Module]:
    """Some layers, one after the other; where layers are streamed, each has its weights until then.

    Args:
        decoder: The model.
        indices: Which, in rising order.

    Yields:
        Each layer itself.

    Raises:
        AssetError: If a weight cannot be read.
        UnsupportedModelError: If a layer is offloaded.
    """
    there = (index for index in indices)
    each = decoder.each(indices) if isinstance(decoder, StreamedDecoder) else there
    with closing(each) as arrivals:
        for index in arrivals:
            if any(parameter.is_meta for parameter in decoder.layers[index].parameters()):
                raise UnsupportedModelError(
                    f"the weights of layer {index} of {decoder.name} are needed and are offloaded; "
                    "use more devices, or what starts from no layer"
                )
            yield decoder.layers[index]


def layer_copy(decoder: Decoder, layer: nn.Module) -> nn.Module:
    """A copy of a layer, while its weights are there, that has no tensor in common with the model.

    Args:
        decoder: The model; its config stays shared.
        layer: The layer; its weights may be tensors without data.
    """
    memo: dict[int, Any] = {id(decoder.config): decoder.config}
    for tensor in (*layer.parameters(), *layer.buffers()):
        own = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if is_parameter else own
    return _without_hooks(copy.deepcopy(layer, memo))


def _without_hooks(layer: nn.Module) -> nn.Module:
    """A copy that no longer sends its inputs to the device of the layer it was made from."""
    if any(hasattr(module, "_hf_hook") for module in layer.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(layer, recurse=True)
    return layer


def projection(layer: nn.Module, path: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A projection of a layer, or what all experts of a mixture have for it: one tensor.

    Args:
        layer: A decoder layer.
        path: As the table of families names it.

    Returns:
        The module that holds them, and the parameters by their names there: weights first.

    Raises:
        AttributeError: If the layer has no such projection.
    """
    parent, _, leaf = path.rpartition(".")
    found = getattr(submodule(layer, parent), leaf)
    if isinstance(found, nn.Parameter):
        return submodule(layer, parent), {leaf: found}
    return found, dict(found.named_parameters(recurse=False))


def odd_layer(decoder: Decoder, *, alike: bool = False) -> str | None:
    """Why a model's layers are not those of its family, or None if they are.

    Args:
        decoder: The model; its weights may lie on the meta device.
        alike: Whether their projections must have the same shapes in every layer.
    """
    first: list[Any] = []
    for index, layer in enumerate(decoder.layers):
        try:
            found = [projection(layer, path)[1] for path in decoder.family.projections]
            shapes = [next(iter(parameters.values())).shape for parameters in found]
        except (AttributeError, StopIteration):
            return (
                f"layer {index} of {decoder.name} is a {type(layer).__name__} without the "
                f"attention or the MLP of a layer of {decoder.family.name}"
            )
        first = first or shapes
        if alike and shapes != first:
            return f"layer {index} of {decoder.name} has projections of other shapes than layer 0"
    return None
