"""Method specs: a method's name with some of its fields set, in one word of the command line.

``llm-streamline-ffn+init=linear+runner_up=1`` is the registered method with two fields changed. The
whole word is the method's label in records and tables, so an ablation is told apart from its
parent.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, get_type_hints

from streamline.errors import ConfigError

if TYPE_CHECKING:
    from streamline.method import Method


def base_name(spec: str) -> str:
    """The method's name without the fields."""
    return spec.split("+", 1)[0]


def build_method(spec: str) -> Method:
    """Make the method that a spec describes.

    Args:
        spec: ``name`` or ``name+field=value+field=value``; values are read as YAML.

    Returns:
        The method, its other fields at their defaults.

    Raises:
        UnknownNameError: If the name is not registered.
        ConfigError: If a field does not exist or its value does not fit.
    """
    from streamline.registry import load_method

    name, *settings = spec.split("+")
    cls = load_method(name)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or field not in fields:
            accepted = f"write field=value with one of {', '.join(sorted(fields))}"
            raise ConfigError(
                f"{setting!r} in {spec!r} does not set a field of {name}: "
                f"{accepted if fields else 'it has none'}"
            )
        values[field] = _value(cls, field, text, spec)
    return cls(**values)


def _value(cls: type, field: str, text: str, spec: str) -> Any:
    import yaml
    from pydantic import TypeAdapter, ValidationError

    hint = get_type_hints(cls)[field]
    try:
        return TypeAdapter(hint).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigError(f"{field}={text} in {spec!r} is not accepted: {reason}") from error
