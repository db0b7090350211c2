"""Whether a model's layers are what a method takes them for: those of its family, all alike.

Checkpoints of pruned models are models too, and may hold networks in place of layers, layers
without an attention, or fewer heads in some.
"""

from __future__ import annotations

from typing import Any

from streamline.engine.decoder import Decoder, submodule

__all__ = ["odd_layer"]


def odd_layer(decoder: Decoder, *, alike: bool = False) -> str | None:
    """Why a model's layers are not those of its family, or None if they are.

    Args:
        decoder: The model; its weights may lie on the meta device.
        alike: Whether their projections must have the same shapes in every layer.
    """
    first: list[Any] = []
    for index, layer in enumerate(decoder.layers):
        try:
            parts: list[Any] = [submodule(layer, path) for path in decoder.family.projections]
            shapes = [part.weight.shape for part in parts]
        except AttributeError:
            return (
                f"layer {index} of {decoder.name} is a {type(layer).__name__} without the "
                f"attention or the MLP of a layer of {decoder.family.name}"
            )
        first = first or shapes
        if alike and shapes != first:
            return f"layer {index} of {decoder.name} has projections of other shapes than layer 0"
    return None
