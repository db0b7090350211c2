"""Parts of pages on the settings of a run, made from its model."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from words import accepts, plain, table

_CELL = ("models", "methods", "sparsities", "seeds", "recovery")  # what a cell is one of each of


def configuration(block: str) -> str:
    """The fields of a run, or of one block of it."""
    from streamline.run.config import RunConfig
    from streamline.run.settings import settings

    rows = []
    for found in settings(RunConfig):
        *above, name = found.path
        if ".".join(above) != block:
            continue
        is_block = any(map(_is_model, (found.annotation, *get_args(found.annotation))))
        table_of_it = isinstance(found.default, BaseModel)
        default = "its table" if table_of_it else _default(found.default, found.annotation)
        given = {"cell": name in _CELL, "key": found.keyed, "model": found.per_model}
        marks = [word for word, on in given.items() if on]
        kinds = "" if is_block else accepts(found.annotation)
        flag = f"`{found.flag}`" if found.flag else ""
        key = f"[`{name}`](#{name})" if is_block else f"`{name}`"
        rows.append(
            (f"{key}{'<br>' * bool(flag)}{flag}", default, kinds, ", ".join(marks), found.help)
        )
    head = ("YAML, flag", "default", "accepts", "in", "what it is")
    return table(head, rows)


def block(path: str) -> str:
    """The fields of a model that stands inside a block or a mapping."""
    import importlib

    module, name = path.split(":")
    cls = getattr(importlib.import_module(module), name)
    rows = [
        (
            f"`{field}`",
            _default(info.get_default(call_default_factory=True), info.annotation),
            accepts(cls.__annotations__ and get_type_hints(cls, include_extras=True)[field]),
            info.description or "",
        )
        for field, info in cls.model_fields.items()
    ]
    return table(("YAML", "default", "accepts", "what it is"), rows)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def quick(_: str) -> str:
    """What ``--quick`` sets."""
    from streamline.run.stage_config import QUICK

    rows = []
    for name, value in QUICK.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"`{name}{'.' * bool(key)}{key}`", f"`{found}`") for key, found in parts]
    return table(("setting", "in a trial"), rows)


def budgets(_: str) -> str:
    """The training budgets that papers state."""
    from streamline.run.deciding.budgets import BUDGETS

    rows = [
        (
            one.shown,
            f"{one.n_samples:,} of {one.length:,} tokens",
            f"{one.epochs}",
            f"{one.batch_tokens:,}",
            f"{one.learning_rate:g}",
            one.source,
        )
        for one in BUDGETS
    ]
    head = ("stated for", "samples", "epochs", "tokens of a step", "learning rate", "where")
    return table(head, rows)


def _default(value: Any, annotation: Any) -> str:
    if value is None:
        return "none" if type(None) in getattr(annotation, "__args__", ()) else "must be given"
    if type(value).__name__ == "PydanticUndefinedType":
        return "must be given"
    return f"`{plain(value)}`"
