"""Settings that may be left open: ``auto`` in the place of a value.

Example::

    Training = left_open("Training", __name__, Recipe, "n_tokens")
    Training().n_tokens                 # "auto", until it is decided
    Training(n_tokens=9).n_tokens       # 9
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, Discriminator, Field, Tag, create_model

__all__ = ["TAG", "left_open"]

TAG = "value"
"""Stands in the place of an error of such a setting beside its name."""

_AUTO = "auto"


def left_open(name: str, module: str, block: type[BaseModel], *names: str) -> type[BaseModel]:
    """A block of settings some of which may be ``auto``, and are where nothing is given.

    Args:
        name: What it is called where it stands, by which other processes find it.
        module: Where it stands.
        block: The block; everything else of it stays.
        names: Its fields that may be left open.
    """
    hints = get_type_hints(block, include_extras=True)
    words = {one: block.model_fields[one].description for one in names}
    fields: dict[str, Any] = {
        one: (_or_auto(hints[one]), Field(_AUTO, description=words[one])) for one in names
    }
    made: type[BaseModel] = create_model(
        name, __base__=block, __doc__=block.__doc__, __module__=module, **fields
    )
    return made


def _or_auto(annotation: Any) -> Any:
    """A type, or ``auto``; an error is that of the one of the two that was meant."""
    return Annotated[
        Annotated[annotation, Tag(TAG)] | Annotated[Literal["auto"], Tag(_AUTO)],
        Discriminator(lambda value: _AUTO if value == _AUTO else TAG),
    ]
