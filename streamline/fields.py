"""The fields of a method: the ranges they may have, checked when the method is made.

A field says in its annotation what it accepts; :class:`streamline.method.Method` holds every field
against it, however the method is made.

Example::

    n_samples: Count | None = 10
    search_share: Fraction = 0.3
    rule: Literal["paper", "release"] = "paper"
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from streamline.errors import ConfigError

__all__ = [
    "Count",
    "Fraction",
    "Length",
    "ModelName",
    "Natural",
    "NonNegative",
    "Positive",
    "check_fields",
    "model_fields",
]

_LARGEST = 2**31 - 1

#: At least 1.
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
#: At least 0.
Natural = Annotated[int, Field(ge=0, le=_LARGEST)]
#: Tokens of a sequence of which something is predicted: at least 2.
Length = Annotated[int, Field(ge=2, le=_LARGEST)]
#: In [0, 1].
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
#: Finite and above 0.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: Finite and at least 0.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_A_MODEL = "names a model"
#: A model: a short name, a folder or a hub id. A cell's key has its content, not its name.
ModelName = Annotated[str, Field(min_length=1), _A_MODEL]


def model_fields(method: Any) -> list[str]:
    """The fields of a method that name a model, as :data:`ModelName` says, and are set."""
    cls: type = type(method)
    found = [name for name, (hint, _) in _adapters(cls).items() if _names_a_model(hint)]
    return [name for name in found if getattr(method, name)]


def check_fields(method: Any) -> None:
    """Hold every field that is not at its default against its annotation.

    Values of a near type become the field's own (``1`` for a float, a list for a tuple).
    Annotations that cannot be read from here are left alone.

    Args:
        method: A dataclass.

    Raises:
        ConfigError: If a value does not fit, with the field, the value and what is accepted.
    """
    cls: type = type(method)
    for name, (hint, adapter) in _adapters(cls).items():
        value = getattr(method, name)
        if value is _default(cls, name):
            continue
        try:
            if isinstance(value, bool) and not _takes_truth(hint):
                raise ConfigError("true and false are no numbers")
            fitting = adapter.validate_python(value)
        except (ValidationError, ConfigError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ConfigError(
                f"{name}={value!r:.40} of {getattr(method, 'name', type(method).__name__)} is not "
                f"accepted: {reason}"
            ) from error
        if type(fitting) is not type(value):
            object.__setattr__(method, name, fitting)


@cache
def _adapters(cls: type) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """What reads each field of a class."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # names that are there for type checking alone
        return {}
    found = {}
    for field in dataclasses.fields(cls):
        if field.init:
            try:
                found[field.name] = (hints[field.name], TypeAdapter(hints[field.name]))
            except PydanticUserError:  # a type that says nothing of itself
                continue
    return found


def _default(cls: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(cls) if f.name == name)


def _takes_truth(hint: Any) -> bool:
    """Whether an annotation has true and false among its values."""
    return hint in (bool, Any, object) or any(map(_takes_truth, get_args(hint)))


def _names_a_model(hint: Any) -> bool:
    """Whether an annotation has the mark of :data:`ModelName`."""
    return hint == _A_MODEL or any(map(_names_a_model, get_args(hint)))
