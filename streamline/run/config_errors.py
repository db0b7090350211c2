"""What is wrong with a configuration, in one message: where, what was given, what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["errors_text", "explain", "renamed"]

#: Fields by the name that they once had.
_RENAMED = {"healing": "lora"}


def renamed(names: Iterable[str]) -> str:
    """What fields that are gone are called now, as the end of a message; else empty."""
    return "".join(f"; {name} is now {_RENAMED[name]}" for name in names if name in _RENAMED)


def explain(
    error: ValidationError, model: type[BaseModel], flags: Collection[str], suite: str | None
) -> str:
    """All errors of a configuration in one text, with where and what was given.

    Args:
        error: What the check of the whole found.
        model: What was checked.
        flags: Fields that the command line set; the others are the suite's.
        suite: Name of the suite, or None.
    """
    found = error.errors()
    ours = [one for one in found if suite is None or set(one["loc"][:1]) & set(flags)]
    theirs = [one for one in found if one not in ours]
    texts = [f"bad settings: {errors_text(ours, model)}"] if ours else []
    texts += [f"bad settings in suite {suite!r}: {errors_text(theirs, model)}"] if theirs else []
    return "; ".join(texts)


def errors_text(found: Iterable[Mapping[str, Any]], model: type[BaseModel]) -> str:
    """Errors that pydantic found in a model, in words."""
    lines = []
    for one in found:
        place = [part for part in one["loc"] if isinstance(part, str)]
        name = ".".join(place)
        if one["type"] == "extra_forbidden":
            lines.append(f"{name} is not a field of a run{_nearest(place, model)}")
            continue
        reason = one["msg"].removeprefix("Value error, ")
        if one["type"] == "model_type":
            reason = "must be a mapping of fields"
        reason = reason[:1].lower() + reason[1:]
        value = one["input"]
        given = f" (given: {str(value) if isinstance(value, Path) else value!r})" if name else ""
        lines.append(f"{name}: {reason}{given}" if name else reason)
    return "; ".join(lines)


def _nearest(place: list[str], model: type[BaseModel]) -> str:
    """The field most like an unknown one, from the model where it was written."""
    if place[-1] in _RENAMED:
        return renamed(place[-1:])
    for part in place[:-1]:
        if part in model.model_fields:  # else it is a key of a mapping, as a method's name
            model = _model_in(model.model_fields[part].annotation) or model
    near = difflib.get_close_matches(place[-1], model.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; its fields are: {', '.join(model.model_fields)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation names, alone, as an option or as a mapping's values."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)
