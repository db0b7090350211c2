"""Parts of pages on methods, made from their classes and ``baselines/README.md``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import get_type_hints

from rewriting import rewritten
from words import accepts, plain, table

ROOT = Path(__file__).parents[2]


def methods(section: str) -> str:
    """The methods of one section of ``baselines/README.md``, each from its class."""
    from streamline.registry import load_method

    text, last = [], None
    for name, row in catalogue()[section].items():
        cls = load_method(name)
        text.append(_method(name, cls, row, with_module=cls.__module__ != last))
        last = cls.__module__
    return "\n".join(text)


def catalogue() -> dict[str, dict[str, dict[str, str]]]:
    """Section of ``baselines/README.md`` -> name of a method -> its row by column."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section, row in _rows():
        if "name" in row:
            found.setdefault(section, {})[row["name"].strip("`")] = row
    return found


def origins(name: str) -> dict[str, dict[str, str]]:
    """Field of a method -> the row of ``baselines/README.md`` on where its default comes from."""
    return {
        field: row
        for _, row in _rows()
        if f"`{name}`" in row.get("method", "")
        for field in re.findall(r"`(\w+)=", row["default"])
    }


def _rows() -> Iterable[tuple[str, dict[str, str]]]:
    """The rows of all tables of ``baselines/README.md``, each with its section."""
    section, head = "", None
    for line in (ROOT / "baselines" / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if head is None:
            head = cells
        elif not set(line) <= set("|-: "):
            yield section, dict(zip(head, cells, strict=True))


def _method(name: str, cls: type, row: dict[str, str], *, with_module: bool) -> str:
    parts: dict[str, list[str]] = {}
    attributes: dict[str, str] = {}
    for base in cls.__mro__:  # from the class itself to what it is made of
        if base.__module__.startswith("streamline.") and base.__module__ != "streamline.method":
            for title, body in sections(base.__dict__.get("__doc__") or "").items():
                parts.setdefault(title, []).append(body)
                if title == "Attributes":
                    attributes = _items(body) | attributes
    module = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    intro = sections(module).get("", "").partition("\n\n")[2] if with_module else ""
    summary, _, body = parts[""][0].partition("\n\n")
    facts = [row["paper"], f"released code: {row['released code'].removeprefix('read: ')}"]
    facts += ["its network is trained"] if cls.trains else []
    facts += [f"families: {', '.join(cls.families)}"] if cls.families != ("all",) else []
    text = [f"## {name}", "", f"**{summary}**", "", f"*{'; '.join(facts)}*", ""]
    text += [part + "\n" for part in (intro, body, *(t for t in parts[""][1:])) if part]
    fields = list(_fields(name, cls, attributes))
    if fields:
        text.append(table(("field", "default", "from", "accepts", "what it is"), fields))
    for title, bodies in parts.items():
        if title.startswith(("Differs", "Reference")):
            bodies = bodies if title.startswith("Differs") else bodies[:1]
            text.append(f"**{title}.** " + "\n\n".join(bodies) + "\n")
    return rewritten("\n".join(text))


def sections(docstring: str) -> dict[str, str]:
    """A docstring's sections by title; the text before the first has none."""
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in inspect.cleandoc(docstring).splitlines():
        head = re.match(r"^([A-Z][\w ]+):(?::)?\s*(.*)$", line)
        known = head and head[1].startswith(("Attributes", "Reference", "Differs", "Example"))
        if head is not None and known:
            title = head[1]
            found[title] = [head[2]] if head[2] else []
        elif title and line and not line.startswith(" "):
            found[title].append(line)
        else:
            found[title].append(line[4:] if title else line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def _items(body: str) -> dict[str, str]:
    """``name: text`` of an ``Attributes`` section, continued lines joined."""
    found: dict[str, str] = {}
    for line in body.splitlines():
        head = re.match(r"^(\w+): (.*)$", line)
        if head:
            found[last := head[1]] = head[2]
        elif found:
            found[last] += " " + line.strip()
    return found


def _fields(name: str, cls: type, attributes: dict[str, str]) -> Iterable[tuple[str, ...]]:
    hints = get_type_hints(cls, include_extras=True)
    sources = origins(name)
    for field in dataclasses.fields(cls):
        if field.repr and field.init:
            default = field.default
            shown = "-" if default is dataclasses.MISSING else f"`{plain(default)}`"
            row = sources.get(field.name, {})
            why = next((row[key] for key in row if key.startswith("what")), "")
            what = attributes.get(field.name, "")
            what += f" *{why[0].upper()}{why[1:]}.*" if why else ""
            words = (shown, row.get("from", ""), accepts(hints[field.name]), what)
            yield (f"`{field.name}`", *words)
