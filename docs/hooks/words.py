"""What the generated parts share: tables, and values and types in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what would end a cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + ":--|" * len(head)]
    for row in rows:
        cells = (re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def accepts(annotation: Any) -> str:
    """What a field accepts, in words, from its JSON schema."""
    try:
        return _words(TypeAdapter(annotation).json_schema())
    except Exception:  # a type that says nothing of itself
        return ""


def _words(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_words, schema["anyOf"]))))
    kind = schema.get("type")
    if kind == "array" and "items" in schema:
        return f"a list: {_words(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    words |= {"string": "text", "null": "none", "object": "mapping", "array": "a list"}
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    if "exclusiveMinimum" in schema:
        bounds.pop("minimum")
    limits = [f"{word} {schema[key]:g}" for key, word in bounds.items() if _small(schema, key)]
    limits += [f"to {schema['maximum']:g}"] if _small(schema, "maximum") else []
    if schema.get("format", "").endswith("path"):
        return "a path"
    return " ".join([words.get(str(kind), ""), *limits])


def _small(schema: dict[str, Any], key: str) -> bool:
    return key in schema and abs(schema[key]) < 2**31 - 1


def plain(value: Any) -> str:
    """A value as it is written on the command line and in YAML."""
    if isinstance(value, (bool, type(None))):
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(plain, value)) + "]" if len(value) != 1 else plain(value[0])
    return str(value) or "''"
