"""Settings of a run and what is known of each: its flag, its help, what depends on it.

A setting is declared once, as a field of :class:`streamline.run.config.RunConfig` or of one of its
blocks. The command line makes its flags from :func:`settings`, a cell's key is made of the fields
that :func:`names` gives for ``"keyed"``, and a suite is checked against the same fields.

Example::

    limit: Positive | None = setting(None, "Questions of each task.", flag="--limit", keyed=True)

    for found in settings(RunConfig):
        print(found.flag, found.path, found.help, found.default)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

__all__ = ["Setting", "names", "setting", "settings"]

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        path: Its place in a suite: the field, or the block and the block's field.
        help: What it is, in one line.
        flag: Its flag on the command line, or None.
        default: Its value where nothing is given; None also where something must be.
        annotation: Its type.
        keyed: Whether a cell's numbers depend on it.
        per_model: Whether it may differ from model to model.
        metavar: What the flag's value is called in the help, or None.
    """

    path: tuple[str, ...]
    help: str
    flag: str | None
    default: Any
    annotation: Any
    keyed: bool
    per_model: bool
    metavar: str | None = None

    def given(self, value: Any) -> dict[str, Any]:
        """The setting's value as a part of a suite: ``{"training": {"n_tokens": 9}}``."""
        for name in reversed(self.path):
            value = {name: value}
        return cast("dict[str, Any]", value)


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    keyed: bool = False,
    per_model: bool = False,
    flags: Mapping[str, str] | None = None,
) -> Any:
    """Declare a field of a run.

    Args:
        default: Its value where nothing is given; ``...`` where something must be.
        help: What it is, in one line; for a block the flags of its fields take theirs from them.
        flag: Its flag on the command line, if it has one.
        metavar: What the flag's value is called in the help.
        keyed: Whether a cell's numbers depend on it.
        per_model: Whether it may differ from model to model.
        flags: For a block: flag -> field of the block.
    """
    known: dict[str, Any] = {
        "flag": flag,
        "metavar": metavar,
        "keyed": keyed,
        "per_model": per_model,
        "flags": dict(flags or {}),
    }
    return Field(default, description=help, json_schema_extra={_KEY: known})


def names(model: type[BaseModel], what: Literal["keyed", "per_model"]) -> tuple[str, ...]:
    """The fields of a run that enter a cell's key, or that may differ from model to model."""
    return tuple(name for name, info in model.model_fields.items() if _known(info)[what])


def settings(model: type[BaseModel]) -> list[Setting]:
    """Every setting of a run, those of its blocks included, in the order of their declaration."""
    found: list[Setting] = []
    for name, info in model.model_fields.items():
        known = _known(info)
        keyed, per_model = known["keyed"], known["per_model"]
        found.append(_listed((name,), info, known["flag"], keyed, per_model, known["metavar"]))
        block = info.annotation
        if isinstance(block, type) and issubclass(block, BaseModel):
            flags = {field: flag for flag, field in known["flags"].items()}
            found += [
                _listed((name, field), inner, flags.get(field), keyed, per_model)
                for field, inner in block.model_fields.items()
            ]
    return found


def _listed(
    path: tuple[str, ...],
    info: FieldInfo,
    flag: str | None,
    keyed: bool,
    per_model: bool,
    metavar: str | None = None,
) -> Setting:
    default = None if info.is_required() else info.get_default(call_default_factory=False)
    help = info.description or ""
    return Setting(path, help, flag, default, info.annotation, keyed, per_model, metavar)


def _known(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    found = extra.get(_KEY) if isinstance(extra, dict) else None
    return dict(cast("Mapping[str, Any]", found)) if found else {**_UNKNOWN}


_UNKNOWN: dict[str, Any] = {
    "flag": None,
    "metavar": None,
    "keyed": False,
    "per_model": False,
    "flags": {},
}
