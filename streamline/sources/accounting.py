"""Every tensor of a model has one in its folder, of its shape, and none is left over.

Whether a model is loaded whole, read layer by layer or only counted, this says which stored tensor
each of its tensors is, or refuses the folder with one message. What is harmless is known: a head
that is missing because it is the embedding, buffers of older versions, a base model's names with or
without its prefix.

Example::

    with WeightSource(folder) as source:
        account(model, source)["lm_head.weight"]       # "model.embed_tokens.weight" where tied
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from streamline.errors import AssetError
from streamline.sources.weights import WeightSource, is_harmless

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["OLD_NAMES", "account", "check_range", "check_report"]

#: What older versions of transformers called a module: model type -> old and present prefix.
OLD_NAMES = {"gpt_neox": ("embed_out.", "lm_head.")}
_SHOWN = 3


def account(model: PreTrainedModel, source: WeightSource) -> dict[str, str]:
    """Which stored tensor each tensor of a model is.

    Args:
        model: A model of the folder's config, tied; its tensors may be on the meta device.
        source: The folder's weights. They are read only where the config ties two that are both
            stored, to see that they are equal.

    Returns:
        Name in the model's state -> name in the source; tensors that are tied have the same one.

    Raises:
        AssetError: If a tensor is missing, left over, there twice, of another shape or quantised,
            or tied ones differ.
    """
    state = model.state_dict(keep_vars=True)
    stored: dict[str, list[str]] = {}
    left = []
    for key in source:
        name = _name(key, state, model)
        if name is not None:
            stored.setdefault(name, []).append(key)
        elif not is_harmless(key):
            left.append(key)
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    twice, missing, shapes, quantised, differing = [], [], [], [], []
    places: dict[str, str] = {}
    for names in groups.values():
        there = [name for name in names if name in stored]
        if not there and not is_harmless(names[0]):
            missing.append(names[-1] if "lm_head" in names[-1] else names[0])
        for name in there:
            first, *more = stored[name]
            wanted, place = state[name], source[first]
            twice += [f"{key!r} and {first!r}" for key in more]
            if place.shape != tuple(wanted.shape):
                found, needed = list(place.shape), list(wanted.shape)
                shapes.append(f"{first!r} is {found}, the config needs {needed}")
            elif wanted.is_floating_point() and not place.dtype.is_floating_point:
                kind = str(place.dtype).removeprefix("torch.")
                quantised.append(f"{first!r} is stored as {kind}")
        one = [stored[name][0] for name in there]
        differing += [
            f"{one[0]!r} and {key!r}" for key in one[1:] if not _same(source, one[0], key)
        ]
        places |= {name: one[0] for name in names if one}
    faults = {
        "missing": _quoted(missing),
        "left over": _quoted(left),
        "there twice": twice,
        "of another shape": shapes,
        "quantised": quantised,
        "one tensor by the config, whose tie_word_embeddings is true, but they differ": differing,
    }
    if any(faults.values()):
        raise _refusal(source, faults, _hints(model, source, missing, bool(quantised)))
    return places


def check_report(folder: Any, report: Mapping[str, Any]) -> None:
    """Refuse what transformers itself could not place, by its loading report.

    Args:
        folder: Where the model was loaded from.
        report: With ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` and ``error_msgs``.

    Raises:
        AssetError: If it names anything that is not harmless.
    """
    faults = {
        kind: [str(key) for key in report.get(field) or () if not is_harmless(str(key))]
        for kind, field in {
            "missing": "missing_keys",
            "left over": "unexpected_keys",
            "of another shape": "mismatched_keys",
            "not converted": "error_msgs",
        }.items()
    }
    if any(faults.values()):
        raise AssetError(_text(folder, faults))


def check_layers(config: PretrainedConfig, source: WeightSource) -> None:
    """Refuse a config of more layers than there are tensors, before a model of it is made.

    Raises:
        AssetError: If its layers cannot be in the source.
    """
    layers, tensors = getattr(config, "num_hidden_layers", 0), len(list(source))
    if isinstance(layers, int) and layers > tensors:
        raise AssetError(
            f"The weights in {source.folder} are not those of its config: num_hidden_layers is "
            f"{layers}, and there are {tensors} tensors. Take config and weights of one model"
        )


def check_range(model: PreTrainedModel, source: WeightSource) -> None:
    """Refuse a model loaded in float16 whose stored weights are too large for it.

    Raises:
        AssetError: If a finite weight has become infinite.
    """
    places = account(model, source)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not parameter.isfinite().all():
            source.read(places[name], parameter.dtype)


def _name(key: str, state: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """The tensor of a model's state that a stored name stands for, as transformers finds it."""
    old, new = OLD_NAMES.get(model.config.model_type, ("", ""))
    if old and key.startswith(old):
        key = new + key.removeprefix(old)
    prefix = f"{model.base_model_prefix}."
    bare = key.removeprefix(prefix)
    candidates = (bare if bare != key else None, prefix + key, key)
    return next((name for name in candidates if name in state), None)


def _same(source: WeightSource, one: str, other: str) -> bool:
    """Whether two stored tensors are equal; what lies at the same place is not read."""
    if source[one] == source[other]:
        return True
    return source[one].shape == source[other].shape and torch.equal(
        source.read(one), source.read(other)
    )


def _hints(
    model: PreTrainedModel, source: WeightSource, missing: list[str], quantised: bool
) -> list[str]:
    """What in the config does not go with the weights, where it can be told."""
    hints = []
    numbers = {int(found[1]) for key in source if (found := re.search(r"(?:^|\.)(\d+)\.", key))}
    layers = int(getattr(model.config, "num_hidden_layers", 0))
    if numbers and numbers != set(range(layers)):
        there = sorted(numbers)
        text = ", ".join(map(str, there))
        if len(there) > 8:
            whole = there == list(range(len(there)))
            text = f"0 to {there[-1]}" if whole else f"{text[:40]}..."
        hints.append(f"num_hidden_layers is {layers}, the weights are of the layers {text}")
    if any(name.startswith("lm_head.") for name in missing) and len(missing) == 1:
        hints.append("if the head is the embedding, set tie_word_embeddings to true")
    if quantised:
        hints.append("take weights that are not quantised")
    return hints


def _refusal(
    source: WeightSource, faults: Mapping[str, list[str]], hints: Iterable[str]
) -> AssetError:
    return AssetError(_text(source.folder, faults, hints))


def _text(folder: Any, faults: Mapping[str, list[str]], hints: Iterable[str] = ()) -> str:
    parts = []
    for kind, found in faults.items():
        if found:
            more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
            parts.append(f"{kind}: {', '.join(found[:_SHOWN])}{more}")
    advice = "".join(f" ({hint})" for hint in hints)
    return (
        f"The weights in {folder} are not those of its config: {'; '.join(parts)}{advice}. "
        "Take config and weights of one model, as `save_pretrained` writes them"
    )


def _quoted(names: Iterable[str]) -> list[str]:
    return [repr(name) for name in names]
