"""The flags that verbs take: those of a run as its fields declare them, and a few of all verbs.

A verb names the flags it takes and is handed what was given of them as one mapping, which
:func:`streamline.run.config.build_config` checks::

    @takes("--limit", "--device")
    def command(given: dict[str, Any], model: Model) -> None:
        config = build_config(given | {"models": [model]})
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

from streamline.cli import complete
from streamline.run.checks.merge import merge
from streamline.run.config import RunConfig
from streamline.run.settings import Setting, settings

__all__ = [
    "AsJson",
    "Method",
    "MethodOrNone",
    "Model",
    "NoVerify",
    "Plans",
    "PushTo",
    "given_layers",
    "takes",
]

Model = Annotated[
    str,
    typer.Argument(
        help="An alias, a hub id, a folder or a checkpoint.", autocompletion=complete.models
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="A name, NAME+FIELD=VALUE, or `pkg.module:Class`.", autocompletion=complete.methods
    ),
]
MethodOrNone = Annotated[str | None, *Method.__metadata__]
Plans = Annotated[
    list[str] | None,
    typer.Option(
        "--plan",
        help="Remove the layers of a plan: a file of a run's plans, a checkpoint, or RUN:CELL.",
    ),
]
PushTo = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="REPO", help="Upload it to OWNER/NAME on the hub too."),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify", help="Do not compare the folder with the model in a fresh process."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]

_SETTINGS = {found.flag: found for found in settings(RunConfig) if found.flag}
_COMPLETED = {
    "--models": complete.models,
    "--methods": complete.methods,
    "--tasks": complete.tasks,
    "--suite": complete.suites,
}
_ALSO = {"--seed": ("--seeds",)}


def given_layers(plans: Iterable[str]) -> list[str]:
    """The specs of methods that remove what plans removed.

    Args:
        plans: As for :func:`streamline.results.select.read_plan`.

    Raises:
        ConfigError: If one of them removes nothing, or cannot be found or read.
        PlanError: If one of them puts something in the place of what is gone.
    """
    from streamline.errors import ConfigError
    from streamline.results.select import read_plan

    specs = []
    for source in plans:
        items = read_plan(source).removals
        if not items:
            raise ConfigError(f"the plan of {source} removes no layer")
        specs.append(f"given-layers+remove=[{','.join(items)}]")
    return list(dict.fromkeys(specs))


def takes(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb flags of a run.

    Args:
        flags: Which; all that a run has if none is named.

    Returns:
        A decorator. The verb's first parameter, ``given``, becomes these flags: it is the fields
        that were given, as text or switches, each at its place in a suite.
    """
    chosen = [_SETTINGS[flag] for flag in flags or _SETTINGS]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**values: Any) -> None:
            given: Mapping[str, Any] = {}
            for found in chosen:
                value = values.pop(_name(found))
                if value is not None and value is not False:
                    given = merge(given, found.given(value))
            verb(given, **values)

        hints = get_type_hints(verb, include_extras=True)
        own = list(inspect.signature(verb).parameters.values())[1:]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            *(one.replace(kind=kind, annotation=hints[one.name]) for one in own),
            *(
                inspect.Parameter(
                    _name(found), kind, default=_default(found), annotation=_annotation(found)
                )
                for found in chosen
            ),
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        del command.__wrapped__  # its hints are not these
        return command

    return decorate


def _name(found: Setting) -> str:
    return str(found.flag).removeprefix("--").replace("-", "_")


def _default(found: Setting) -> bool | None:
    return False if found.annotation is bool else None


def _annotation(found: Setting) -> Any:
    flag = str(found.flag)
    option = typer.Option(
        flag,
        *_ALSO.get(flag, ()),
        help=found.help,
        metavar=found.metavar or ("N" if _is_number(found.annotation) else None),
        autocompletion=_COMPLETED.get(flag),
    )
    return Annotated[bool if found.annotation is bool else str | None, option]


def _is_number(annotation: Any) -> bool:
    """Whether a field is a whole number, or none."""
    return annotation is int or any(_is_number(part) for part in get_args(annotation)[:1])
