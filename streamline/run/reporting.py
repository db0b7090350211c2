"""A run's report with what only the suites, the settings and the table of tasks know.

The report itself is made from records alone (:mod:`streamline.report`); here it is given the table
that the run's suite regenerates, the commands that repeat the run, and what older records do not
report of their tasks.

Example::

    report_run("out")
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError, UnknownNameError
from streamline.evaluation.tasks.catalogue import TASKS
from streamline.report.artifacts import run_settings
from streamline.report.layouts import check_headline
from streamline.report.report import write_report
from streamline.report.runs import RunFolder
from streamline.results.averages import group_of
from streamline.results.record import Record, TaskResult
from streamline.results.record_file import load
from streamline.run.commands import commands_of, made_with
from streamline.run.config import RunConfig, build_config
from streamline.run.settings import settings as declared
from streamline.run.suites import load_suite

__all__ = ["report_run", "report_runs", "rerun_command"]

# Fields of a run that decide its results beside those that are in every cell's key.
_DECIDING = ("models", "methods", "sparsities", "seeds", "recovery", "data", "data_dir")


def report_run(directory: str | Path, suite: str | None = None) -> Path:
    """Write a run's report into its folder.

    Args:
        directory: The folder with ``results.json``.
        suite: Name or file of the suite whose layout is followed; by default the one that the run
            came from, if any.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there are no records, or what lies beside them is malformed.
        UnknownNameError: If the suite does not exist.
    """
    return report_runs([directory], directory, suite, command="streamline-bench report DIR")


def report_runs(
    directories: Sequence[str | Path],
    out: str | Path,
    suite: str | None = None,
    *,
    command: str | None = None,
) -> Path:
    """Write the report of several runs side by side.

    Args:
        directories: Folders with ``results.json``.
        out: The folder to write into.
        suite: As for ``report_run``; by default the one that the first run came from.
        command: The command line that makes the report again; by default this one.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there are no records, what lies beside them is malformed, or the runs
            cannot be compared.
        UnknownNameError: If the suite does not exist.
    """
    runs = [_run(Path(directory)) for directory in directories]
    said, note = _said(suite, runs[0].settings.get("suite"))
    names = [*map(str, directories), "--out", str(out)]
    return write_report(
        Path(out),
        runs,
        layout=said.get("layout"),
        layout_note=note,
        headline=said.get("headline"),
        command=command or shlex.join(["streamline-bench", "report", *names]),
    )


def _run(directory: Path) -> RunFolder:
    records, settings = load(directory), run_settings(directory)
    return RunFolder(
        path=directory,
        records=[_completed(record, settings.get("data")) for record in records],
        settings=settings,
        commands=commands_of(directory) or [rerun_command(records, settings)],
        made=made_with(directory),
    )


def rerun_command(records: Sequence[Record], settings: Mapping[str, Any]) -> str:
    """The command line that repeats a run of which no command was kept.

    Args:
        records: Of the run.
        settings: Its ``run.json``, empty if it was not kept.

    Returns:
        The suite, or without one models and methods, with the flags of what differs from it or
        from the defaults; behind a ``#`` the settings that differ and have no flag.
    """
    suite = settings.get("suite")
    given: dict[str, Any] = {
        "models": ",".join(dict.fromkeys(record.model for record in records)),
        "methods": ",".join(dict.fromkeys(record.method for record in records)),
    }
    sparsities = sorted({record.sparsity for record in records if record.method != "dense"})
    if sparsities:
        given["sparsities"] = ",".join(f"{value:g}" for value in sparsities)
    words = ["streamline-bench"]
    if suite:
        words += ["--suite", str(suite)]
    else:
        words += [word for name, value in given.items() for word in (f"--{name}", value)]
    try:
        # Not with the methods that were recorded: a folder is data, and names no code to run.
        least = {} if suite else {"models": "any", "methods": "dense"}
        usual = build_config(least, suite=suite).model_dump(mode="json")
    except (ConfigError, UnknownNameError):  # not at hand: only its name is known
        return shlex.join(words)
    lost = []
    for known in declared(RunConfig):
        name, path = known.path[0], ".".join(known.path)
        value = _at(settings, known.path)
        if (not known.keyed and name not in _DECIDING) or (not suite and name in given):
            continue
        if value in (None, _at(usual, known.path)) or isinstance(value, dict):
            continue
        if any(_at(one, (path, "value")) == value for one in _decided(settings)):
            continue
        if known.flag is None or value is False:
            lost.append(path)
        else:
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [known.flag] if value is True else [known.flag, shown]
    return shlex.join(words) + (f"  # and in run.json: {', '.join(lost)}" if lost else "")


def _decided(settings: Mapping[str, Any]) -> list[Any]:
    """What a run has decided for each model of what it was left: setting -> value and reason."""
    found = _at(settings, ("sources", "settings"))
    return list(found.values()) if isinstance(found, Mapping) else []


def _at(settings: Mapping[str, Any], path: Sequence[str]) -> Any:
    """A setting, or None where it is not there."""
    found: Any = settings
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _said(given: str | None, recorded: Any) -> tuple[Mapping[str, Any], str | None]:
    """What a suite says of its report; a note instead if the suite of the run is not at hand."""
    if given is None and recorded is None:
        return {}, None
    try:
        said = load_suite(str(given or recorded)).report
    except UnknownNameError as error:
        if given is not None:
            raise
        return {}, f"{error} For its table in the paper's layout, give --suite FILE."
    if said.get("layout") is not None and not isinstance(said["layout"], Mapping):
        raise ConfigError(
            f"Suite {given or recorded}: report.layout is no mapping; its form is described in "
            "streamline/report/layouts.py."
        )
    if said.get("headline") is not None:
        check_headline(said["headline"])
    return said, None


def _completed(record: Record, data: Any) -> Record:
    """A record whose tasks name how they were scored, where the table of tasks knows it."""
    tasks = {task: _with_facts(task, result, data) for task, result in record.tasks.items()}
    return record.model_copy(update={"tasks": tasks})


def _with_facts(task: str, result: TaskResult, data: Any) -> TaskResult:
    entry = TASKS.get(task) or TASKS.get(group_of(task) or "")
    if entry is None:
        return result
    facts: dict[str, Any] = {"protocol": entry.protocol, "shots": entry.shots}
    if data in ("hub", "packaged"):
        facts["split"] = entry.split(data)
    lacking = {name: fact for name, fact in facts.items() if result.extra(name) is None}
    return result.model_copy(update=lacking)
