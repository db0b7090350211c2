"""``streamline-bench ls``: what is installed."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from streamline.cli.options import AsJson
from streamline.cli.show import show_json, show_table, show_warning

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench ls methods

    streamline-bench ls suites --json
"""


class Kind(str, Enum):
    """What can be listed."""

    METHODS = "methods"
    MODELS = "models"
    TASKS = "tasks"
    SUITES = "suites"


_COLUMNS = {
    Kind.METHODS: ("name", "paper", "families", "trains"),
    Kind.MODELS: ("name", "source", "family", "n_layers"),
    Kind.TASKS: ("name", "kind", "protocol", "metric", "shots", "n_items", "groups"),
    Kind.SUITES: ("name", "title"),
}


def command(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: AsJson = False,
) -> None:
    """List methods, models, tasks or suites."""
    rows = _LISTINGS[kind]()
    if as_json:
        show_json(rows)
    else:
        show_table(rows, _COLUMNS[kind])


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


def _tasks() -> list[dict[str, Any]]:
    from streamline.evaluation.tasks.catalogue import listing

    return listing()


def _suites() -> list[dict[str, Any]]:
    from streamline.run.suites import load_suite, suite_files

    return [
        {"name": name, "title": load_suite(name).title, "source": path.name}
        for name, path in suite_files().items()
    ]


_LISTINGS = {
    Kind.METHODS: _methods,
    Kind.MODELS: _models,
    Kind.TASKS: _tasks,
    Kind.SUITES: _suites,
}
