"""Settings that would apply to nothing, and those that only the command line may give.

Example::

    refuse_unknown_layout(suite)      # report.layout must be a mapping with `published: TABLE`
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamline.errors import ConfigError
from streamline.registry import METHODS, available, base_name, method_names
from streamline.report.layouts import check_headline, layout_table
from streamline.run.stage_config import parts
from streamline.sources.model_table import MODEL_TABLE

if TYPE_CHECKING:
    from streamline.run.suites import Suite

__all__ = ["refuse_idle", "refuse_suites_code", "refuse_unknown_layout"]

_REFERENCE = "dense"  # has no sparsities and no recovery


def refuse_idle(
    *,
    methods: Iterable[str],
    models: Iterable[str],
    per_method: Mapping[str, Iterable[str]],
    per_model: Iterable[str],
    suite: Mapping[str, Any],
) -> None:
    """Refuse settings for a method or a model that the run does not have.

    What a suite sets for its own methods and models stays where flags name others.

    Args:
        methods: Those of the run.
        models: Those of the run.
        per_method: Methods that have settings of their own, by where these stand: the beginning
            of a message.
        per_model: Models that have settings of their own.
        suite: The settings of the run's suite, empty if it has none.

    Raises:
        ConfigError: If there are settings for another method or model.
    """
    known = {*methods, *_named(suite, "methods", available(METHODS))} - {_REFERENCE}
    for where, names in per_method.items():
        for name in names:
            if name not in known:
                raise _idle(f"{where}per_method", "method", name, known)
    known = {*models, *_named(suite, "models", MODEL_TABLE)}
    any_hub_id = bool(suite) and not suite.get("models")
    for name in per_model:
        if name not in known and not (any_hub_id and "/" in name):
            raise _idle("per_model", "model", name, known)


def refuse_suites_code(suite: Suite, flags: Mapping[str, Any]) -> None:
    """Refuse a suite that names code to run, unless the command line trusts it.

    A suite is data that may come from anywhere: who runs it need not have read it.

    Args:
        suite: The suite.
        flags: What the command line gave; what it names itself it may run.

    Raises:
        ConfigError: If the suite has methods as ``pkg.module:Class`` or a folder of tasks, and
            ``--trust-remote-code`` is not given.
    """
    if flags.get("trust_remote_code"):
        return
    models = suite.settings.get("per_model")
    each = models.values() if isinstance(models, Mapping) else ()
    blocks = [suite.settings, *(own for own in each if isinstance(own, Mapping))]
    named = [] if "methods" in flags else [s for own in blocks for s in _texts(own.get("methods"))]
    code = [spec for spec in named if ":" in base_name(spec)]
    folder = suite.settings.get("include_path")
    if folder is not None and "include_path" not in flags:
        code.append(f"include_path {folder}")
    if code:
        raise ConfigError(
            f"the suite {suite.path} names code to run: {', '.join(code)}. Give "
            "--trust-remote-code if you trust it, or name it yourself with --methods or "
            "--include-path"
        )


def refuse_unknown_layout(suite: Suite) -> None:
    """Refuse a table's layout, or a headline, that the report would refuse after the run.

    Raises:
        ConfigError: If ``report.layout`` or ``report.headline`` is malformed.
        UnknownNameError: If it names no published table.
    """
    if suite.report.get("headline") is not None:
        check_headline(suite.report["headline"])
    layout = suite.report.get("layout")
    if layout is None:
        return
    where = f"the suite {suite.path}: report.layout"
    if not isinstance(layout, Mapping):
        raise ConfigError(f"{where} must be a mapping with `published: TABLE`, got {layout!r}")
    for key in ("methods", "columns", "models"):
        names = layout.get(key) or {}
        if not isinstance(names, Mapping) or not _all_text([*names, *names.values()]):
            raise ConfigError(f"{where}: {key} must be a mapping of names, got {names!r}")
    layout_table([], layout)


def _named(suite: Mapping[str, Any], key: str, known: Iterable[str]) -> Sequence[str]:
    """The methods or models of a suite; where it leaves them to the flags, all that are known."""
    if not suite:
        return ()
    names = _texts(suite.get(key))
    if not names:
        return tuple(known)
    return method_names(names) if key == "methods" else names


def _texts(value: Any) -> list[str]:
    items = parts(value) if isinstance(value, str) else value
    return [str(item) for item in items] if isinstance(items, (list, tuple)) else []


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _idle(field: str, kind: str, name: str, names: Iterable[str]) -> ConfigError:
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    if name == _REFERENCE:
        hint = "the dense model is what the others are compared with and has no settings of its own"
    return ConfigError(f"{field}: {name!r} is no {kind} of the run; {hint}")
