"""What decoder layers took from their index when they were built, so that it can be kept.

A layer of some families is built differently at different indices: GPT-2 may divide its attention
scores by the index, Gemma-2 and Qwen attend to a window in some layers. A pruned model's layers are
built anew at other indices, so its config carries what then differs.

Like :mod:`streamline.modeling.modeling_layers`, this file stands alone and is copied into
checkpoints.

Example:
    kept = {3: difference(measured, fresh)}    # {3: {"attn": {"scaling": 0.125}}}
    set_state(fresh, kept[3])
"""

from __future__ import annotations

from typing import Any

from torch import nn

#: Module path -> attribute -> value.
State = dict[str, dict[str, Any]]
#: What a module does not keep from its construction.
_ELSEWHERE = ("training", "tuple_output")


def state_of(layer: nn.Module) -> State:
    """The numbers, texts and switches that a layer's modules hold; JSON.

    Among them is the index in the key-value cache, which follows from the list of layers.
    """
    return {
        path: {
            name: _plain(value)
            for name, value in vars(module).items()
            if name[0] != "_" and name not in _ELSEWHERE and _is_plain(value)
        }
        for path, module in layer.named_modules()
    }


def difference(layer: nn.Module, other: nn.Module) -> State:
    """What one layer holds otherwise than another of the same modules; empty if nothing.

    Args:
        layer: Whose values are wanted.
        other: What it is compared with; an attribute that one of them lacks is left out.
    """
    theirs = state_of(other)
    found = {
        path: {
            name: value
            for name, value in mine.items()
            if name in theirs.get(path, {}) and theirs[path][name] != value
        }
        for path, mine in state_of(layer).items()
    }
    return {path: values for path, values in found.items() if values}


def set_state(layer: nn.Module, state: State) -> None:
    """Set what :func:`difference` found, in place.

    Raises:
        ValueError: If a module keeps no such attribute: in this version of transformers the layer
            computes something else.
    """
    for path, values in state.items():
        module = layer.get_submodule(path)
        for name, value in values.items():
            if name not in vars(module):
                import transformers

                raise ValueError(
                    f"transformers {transformers.__version__} keeps no {name!r} in "
                    f"{type(module).__name__}, which this checkpoint sets; use the version in its "
                    "config.json, or a newer one"
                )
            setattr(module, name, value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
