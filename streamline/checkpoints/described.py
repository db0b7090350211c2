"""What a model's config says of its layers, so that they are built again when it is loaded.

Example::

    model = assemble(pruned.path(decoder))
    plain = describe(model, decoder.family)        # whether there was nothing to say
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

from streamline.engine.decoder import submodule
from streamline.engine.families import Family
from streamline.modeling import modeling_streamline as modeling
from streamline.modeling.modeling_layers import Spec, spec_of
from streamline.modeling.modeling_state import difference
from streamline.streaming.opening import empty_model

__all__ = ["describe", "layer_specs"]


def describe(model: PreTrainedModel, family: Family) -> bool:
    """Say in a model's config what its layers are, if they are not all as the config builds them.

    Args:
        model: From :func:`streamline.engine.assemble.assemble`; changed in place.
        family: Its family.

    Returns:
        Whether there is nothing to say, so that transformers alone loads the model.
    """
    specs = layer_specs(model, family.layers)
    fields: dict[str, Any] = {
        "layers": specs,
        "layers_path": family.layers,
        "tuple_output": family.tuple_output,
    }
    if shell := model.__dict__.get("streamline_shell"):
        fields["shell"] = shell
    plain = all(spec == {"kind": "layer"} for spec in specs)
    plain = plain and not hasattr(model.config, "streamline")
    if not plain:
        modeling.with_layers(model, fields)
    fresh = empty_model(copy.deepcopy(model.config), model.dtype)
    pairs = zip(
        submodule(model, family.layers).children(),
        submodule(fresh, family.layers).children(),
        strict=True,
    )
    differences = {str(index): difference(*pair) for index, pair in enumerate(pairs)}
    state = {index: found for index, found in differences.items() if found}
    if state:
        modeling.with_layers(model, fields | {"state": state})
    return plain and not state


def layer_specs(model: PreTrainedModel, layers_path: str) -> list[Spec]:
    """One spec per layer of a model; a layer with the weights of another one names it.

    Args:
        model: From :func:`streamline.engine.assemble.assemble`.
        layers_path: Path to its list of layers.
    """
    specs: list[Spec] = []
    first: dict[tuple[int, ...], int] = {}
    for index, layer in enumerate(submodule(model, layers_path).children()):
        spec = spec_of(layer)
        key = tuple(id(parameter) for parameter in layer.parameters())
        original = first.setdefault(key, index) if key else index
        shared = {"kind": "shared", "of": original, "module": spec}
        specs.append(spec if original == index else shared)
    return specs
