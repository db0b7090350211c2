"""Parts of pages that are made from the code: methods, settings, commands, models, suites.

Each function takes the argument of its line ``{{ name argument }}`` and returns Markdown.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter
from rewriting import rewritten

ROOT = Path(__file__).parents[2]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what would end a cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + ":--|" * len(head)]
    for row in rows:
        cells = (re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# --- methods


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
            shown = "-" if default is dataclasses.MISSING else f"`{_plain(default)}`"
            row = sources.get(field.name, {})
            why = next((row[key] for key in row if key.startswith("what")), "")
            what = attributes.get(field.name, "")
            what += f" *{why[0].upper()}{why[1:]}.*" if why else ""
            words = (shown, row.get("from", ""), accepts(hints[field.name]), what)
            yield (f"`{field.name}`", *words)


# --- settings of a run


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


def _default(value: Any, annotation: Any) -> str:
    if value is None:
        return "none" if type(None) in getattr(annotation, "__args__", ()) else "must be given"
    if type(value).__name__ == "PydanticUndefinedType":
        return "must be given"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, (bool, type(None))):
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_plain, value)) + "]" if len(value) != 1 else _plain(value[0])
    return str(value) or "''"


# --- commands, models, suites


def commands(_: str) -> str:
    """Every verb with its arguments, flags and examples."""
    import typer

    from streamline.cli.main import app

    root = typer.main.get_command(app)
    text = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner is None:
            text.append(_command(name, command))
        for below, one in (inner or {}).items():
            text.append(_command(f"{name} {below}", one))
    return "\n".join(text)


def _command(name: str, command: Any) -> str:
    from click import Argument

    rows = []
    for option in command.params:
        if option.name == "help" or getattr(option, "hidden", False):
            continue
        if isinstance(option, Argument):
            names = f"`{(option.metavar or option.name or '').upper()}`"
        else:
            names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        rows.append(
            (
                names,
                re.sub(
                    r"(?<!`)\b([A-Z]+(?:[+@=,][A-Z]+)+)\b(?!`)",
                    r"`\1`",
                    getattr(option, "help", "") or "",
                ),
            )
        )
    text = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    if rows:
        text.append(table(("argument or flag", "what it is"), rows))
    if command.epilog:
        text.append(inspect.cleandoc(command.epilog) + "\n")
    return "\n".join(text)


def models(_: str) -> str:
    """The aliases, with what they mean."""
    from streamline.sources.model_table import MODEL_TABLE
    from streamline.sources.models import MODELS

    rows = []
    for name, source in MODELS.items():
        row = MODEL_TABLE[name]
        layers = row.shape.get("num_hidden_layers")
        rows.append((f"`{name}`", str(source), row.model_type or "", str(layers or "")))
    return table(("alias", "what is fetched", "family", "layers"), rows)


def families(_: str) -> str:
    """The architectures that the engine knows."""
    from streamline.engine.families import FAMILIES

    return ", ".join(f"`{name}`" for name in FAMILIES) + ".\n"


def suites(_: str) -> str:
    """Every suite: what it runs, what it needs and what it makes."""
    from streamline.run.config import build_config
    from streamline.run.suites import load_suite, suite_files

    text = []
    for name in suite_files():
        suite, config = load_suite(name), build_config({}, suite=name)
        own = [config.for_model(model) for model in config.models]
        texts = sorted(
            {one.calibration.texts for one in own}
            | {one.training.texts or one.calibration.texts for one in own}
        )
        rows = [
            ("models", ", ".join(f"`{model}`" for model in config.models)),
            ("methods", ", ".join(f"`{method}`" for method in config.methods)),
            ("sparsities", ", ".join(f"{value:g}" for value in _sparsities(config, own))),
            ("tasks", ", ".join(f"`{task}`" for task in config.tasks)),
            ("texts", ", ".join(f"`{one}`" for one in texts)),
            ("training", ", ".join(dict.fromkeys(_amount(one.training) for one in own))),
            ("number format", ", ".join(dict.fromkeys(one.dtype for one in own))),
            ("cells", str(_n_cells(config))),
        ]
        if layout := suite.report.get("layout"):
            rows.append(("beside", f"`reports/published/{layout['published']}.csv`"))
        text += [f"### {name}", "", suite.title + ". " + suite.description, ""]
        text += [table(("", f"`--suite {name}`"), rows)]
    return "\n".join(text)


def _amount(training: Any) -> str:
    """What a training is on, and how often."""
    if training.n_documents is not None:
        return f"{training.n_documents:,} documents, {training.epochs} x"
    return f"{training.n_tokens:,} tokens, {training.epochs} x"


def _sparsities(config: Any, own: Sequence[Any]) -> list[float]:
    found = {value for one in own for value in one.sparsities}
    for one in own:
        for method in one.per_method.values():
            found |= set(method.sparsities or ())
    return sorted(found)


def _n_cells(config: Any) -> int:
    from streamline.run.cell import expand

    return sum(len(expand(config.for_model(model), model)) for model in config.models)


def lora_presets(_: str) -> str:
    """The named recipes of LoRA fine-tuning."""
    from streamline.training.lora_recipe import PRESETS

    fields = (
        "rank",
        "alpha",
        "dropout",
        "targets",
        "learning_rate",
        "shape",
        "batch",
        "length",
        "epochs",
        "max_steps",
    )
    rows = [
        (f"`{name}`", *(_plain(getattr(one, f)) for f in fields)) for name, one in PRESETS.items()
    ]
    return table(("preset", *(f.replace("_", " ") for f in fields)), rows)


GENERATED = {
    function.__name__: function
    for function in (
        methods,
        configuration,
        block,
        quick,
        commands,
        models,
        families,
        suites,
        lora_presets,
    )
}
