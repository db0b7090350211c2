"""The weights of a model's layers, and whether they are what a method takes them for.

Checkpoints of pruned models are models too, and may hold networks in place of layers, layers
without an attention, or fewer heads in some.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from streamline.engine.decoder import Decoder, submodule

__all__ = ["odd_layer", "projection"]


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
