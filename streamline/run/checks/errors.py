"""What is wrong with a configuration, in one message: where, what was given, what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from streamline.run.checks.left_open import TAG

__all__ = ["errors_text", "explain", "given", "model_in", "renamed"]

_MOST = 8  # errors in one message
_WIDEST = 80  # characters of a value in a message

#: Fields by the name that they once had.
_RENAMED = {"healing": "lora"}


def renamed(names: Iterable[str]) -> str:
    """What fields that are gone are called now, as the end of a message; else empty."""
    return "".join(f"; {name} is now {_RENAMED[name]}" for name in names if name in _RENAMED)


def explain(
    error: ValidationError, model: type[BaseModel], suite: str | None, alone: Mapping[str, Any]
) -> str:
    """All errors of a configuration in one text, with where and what was given.

    Args:
        error: What the check of the whole found.
        model: What was checked.
        suite: Name of the suite, or None.
        alone: The settings without what the command line gave. An error that these have too is
            the suite's, any other is the command line's.
    """
    theirs: list[str] = []
    if suite is not None:
        try:
            model.model_validate(alone)
        except ValidationError as other:
            theirs = _lines(other.errors(), model)
    lines = _lines(error.errors(), model)
    ours = [line for line in lines if line not in theirs]
    theirs = [line for line in lines if line in theirs]
    texts = [f"bad settings: {_joined(ours)}"] if ours else []
    texts += [f"bad settings in suite {suite!r}: {_joined(theirs)}"] if theirs else []
    return "; ".join(texts)


def errors_text(found: Iterable[Mapping[str, Any]], model: type[BaseModel]) -> str:
    """Errors that pydantic found in a model, in words."""
    return _joined(_lines(found, model))


def given(value: Any) -> str:
    """What was given, as the end of a sentence; a long value is cut."""
    text = repr(value) if not hasattr(value, "__fspath__") else str(value)
    return f" (given: {text if len(text) <= _WIDEST else text[:_WIDEST] + '…'})"


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation names, alone, as an option or as a mapping's values."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _joined(lines: list[str]) -> str:
    more = f"; and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return "; ".join(lines[:_MOST]) + more


def _lines(found: Iterable[Mapping[str, Any]], model: type[BaseModel]) -> list[str]:
    lines = []
    for one in found:
        place = [part for part in one["loc"] if isinstance(part, str) and part != TAG]
        name = ".".join(place)
        if one["type"] == "extra_forbidden":
            lines.append(f"{name} is not a field of a run{_nearest(place, model)}")
            continue
        reason = one["msg"].removeprefix("Value error, ")
        if one["type"] in ("model_type", "dict_type"):
            reason = "must be a mapping of fields"
        reason = reason[:1].lower() + reason[1:]
        lines.append(f"{name}: {reason}{given(one['input'])}" if name else reason)
    return lines


def _nearest(place: list[str], model: type[BaseModel]) -> str:
    """The field most like an unknown one, from the model where it was written."""
    if place[-1] in _RENAMED:
        return renamed(place[-1:])
    for part in place[:-1]:
        if part in model.model_fields:  # else it is a key of a mapping, as a method's name
            model = model_in(model.model_fields[part].annotation) or model
    near = difflib.get_close_matches(place[-1], model.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; its fields are: {', '.join(model.model_fields)}"
