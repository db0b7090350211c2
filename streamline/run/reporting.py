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

# Fields of a run that decide its results and have a flag of their own.
_DECIDING = (
    "models", "methods", "sparsities", "tasks", "limit", "seeds", "recovery", "dtype", "data",
    "data_dir",
)  # fmt: skip


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
    layout, note = _layout(suite, runs[0].settings.get("suite"))
    names = [*map(str, directories), "--out", str(out)]
    return write_report(
        Path(out),
        runs,
        layout=layout,
        layout_note=note,
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
        The suite with the flags that differ from it, or without a suite models, methods,
        sparsities and limit.
    """
    if settings.get("suite"):
        return shlex.join(_of_suite(str(settings["suite"]), settings))
    words = ["streamline-bench"]
    words += ["--models", ",".join(dict.fromkeys(record.model for record in records))]
    words += ["--methods", ",".join(dict.fromkeys(record.method for record in records))]
    sparsities = sorted({record.sparsity for record in records if record.method != "dense"})
    if sparsities:
        words += ["--sparsities", ",".join(f"{value:g}" for value in sparsities)]
    if isinstance(settings.get("limit"), int):
        words += ["--limit", str(settings["limit"])]
    return shlex.join(words)


def _of_suite(suite: str, settings: Mapping[str, Any]) -> list[str]:
    """The words of the command of a run that came from a suite."""
    words = ["streamline-bench", "--suite", suite]
    try:
        usual = build_config({}, suite=suite).model_dump(mode="json")
    except (ConfigError, UnknownNameError):  # not at hand: only its name is known
        return words
    flags = {known.path: known.flag for known in declared(RunConfig)}
    for name in _DECIDING:
        value, flag = settings.get(name), flags[name,]
        if flag and value is not None and value != usual.get(name):
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def _layout(given: str | None, recorded: Any) -> tuple[Mapping[str, Any] | None, str | None]:
    """The layout of a suite, or a note if the suite of the run is not at hand."""
    if given is None and recorded is None:
        return None, None
    try:
        layout = load_suite(str(given or recorded)).report.get("layout")
    except UnknownNameError as error:
        if given is not None:
            raise
        return None, f"{error} For its table in the paper's layout, give --suite FILE."
    if layout is not None and not isinstance(layout, Mapping):
        raise ConfigError(
            f"Suite {given or recorded}: report.layout is no mapping; its form is described in "
            "streamline/report/layouts.py."
        )
    return layout, None


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
