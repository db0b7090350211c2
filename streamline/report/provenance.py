"""What the numbers of a run depend on: splits, metrics, versions, seeds, hashes, settings.

Example::

    facts = provenance([RunFolder(path=Path("out"), records=load("out"))])
    facts.versions["torch"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamline.report.runs import RunFolder, flat
from streamline.report.table import Table
from streamline.results.averages import collapsed_tasks, group_of
from streamline.results.record import Record, TaskResult

__all__ = ["Provenance", "provenance"]

_UNKNOWN = "not recorded"
_TASK_COLUMNS = ("task", "scored as", "metric", "questions", "split", "shots", "version")
_SPLIT = _TASK_COLUMNS.index("split")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts for the head and the foot of a report.

    Attributes:
        models: In order of appearance.
        states: State -> number of cells.
        seeds: In ascending order.
        tasks: Protocol, questions, split, shots and version of each task and metric.
        validation_only: Tasks whose questions come from a validation split.
        versions: Package -> the versions in use, joined by commas.
        methods: Cell -> the method's hyper-parameters.
        data: Name -> content hash or fact of the data used.
        settings: Setting -> value of the run, as text; of several runs each value once.
        made: When, by which code, on which machines and in what time each run was made.
    """

    models: Sequence[str]
    states: Mapping[str, int]
    seeds: Sequence[int]
    tasks: Table
    validation_only: Sequence[str]
    versions: Mapping[str, str]
    methods: Mapping[str, str]
    data: Mapping[str, str]
    settings: Mapping[str, str]
    made: Table


def provenance(runs: Sequence[RunFolder]) -> Provenance:
    """Collect the facts.

    Args:
        runs: The folders that are reported.

    Returns:
        The facts; what is not recorded is marked as such.
    """
    states: dict[str, int] = {}
    versions: dict[str, dict[str, None]] = {}
    data: dict[str, dict[str, None]] = {}
    methods: dict[str, str] = {}
    tasks: dict[tuple[str, str], tuple[str, ...]] = {}
    records = [record for run in runs for record in run.records]
    for record in records:
        states[record.status] = states.get(record.status, 0) + 1
        for name, value in record.versions.items():
            versions.setdefault(name, {})[_text(value)] = None
        for name, value in flat(record.notes.get("data")):
            data.setdefault(name, {})[_text(value)] = None
        if record.method_repr:
            methods[record.method] = record.method_repr
        for task, result in collapsed_tasks(record).items():
            source = _source(task, record)
            tasks.setdefault((task, result.metric), _task(task, result, source))
    return Provenance(
        models=list(dict.fromkeys(record.model for record in records)),
        states=states,
        seeds=sorted({record.seed for record in records}),
        tasks=Table(
            name="tasks",
            title="Tasks",
            columns=_TASK_COLUMNS,
            rows=tuple(tasks.values()),
            words=len(_TASK_COLUMNS),
        ),
        validation_only=[row[0] for row in tasks.values() if "validation" in row[_SPLIT]],
        versions={name: ", ".join(values) for name, values in versions.items()},
        methods=methods,
        data={name: ", ".join(values) for name, values in data.items()},
        settings=_settings(runs),
        made=_made(runs),
    )


def _settings(runs: Sequence[RunFolder]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in flat(run.settings):
            if name.split(".")[0] != "sources":
                values.setdefault(name, {})[_text(value)] = None
    return {name: " | ".join(texts) for name, texts in values.items()}


def _made(runs: Sequence[RunFolder]) -> Table:
    """A row for each run; its time is that of its commands, as a clock on the wall tells it."""
    rows = []
    for run in runs:
        machines = dict.fromkeys(
            str(record.versions["device"]) for record in run.records if "device" in record.versions
        )
        when = (
            run.made.get(name, _UNKNOWN)
            for name in ("first command", "last command", "commit", "time")
        )
        rows.append((run.name, *when, "; ".join(machines) or _UNKNOWN))
    return Table(
        name="made",
        title="Runs",
        columns=("run", "first command", "last command", "commit", "time", "machine"),
        rows=tuple(rows),
        words=6,
    )


def _source(task: str, record: Record) -> Mapping[str, Any]:
    """The source of a task's questions, or of its first subject's, according to a record."""
    data = record.notes.get("data")
    sources = data.get("sources") if isinstance(data, Mapping) else None
    known: Mapping[str, Any] = sources if isinstance(sources, Mapping) else {}
    subjects = [name for name in known if group_of(name) and name.startswith(f"{task}_")]
    return next(
        (known[name] for name in (task, *subjects) if isinstance(known.get(name), Mapping)), {}
    )


def _task(name: str, result: TaskResult, source: Mapping[str, Any]) -> tuple[str, ...]:
    """What is recorded of a task, a cell for each of ``_TASK_COLUMNS``."""
    split = str(source.get("split") or result.extra("split") or _UNKNOWN)
    subjects = result.extra("subjects")
    return (
        name,
        _text(result.extra("protocol")),
        result.metric,
        _text(result.n) + (f" in {subjects} subjects" if subjects and result.n else ""),
        split + (f" ({source['source']})" if source.get("source") else ""),
        _text(result.extra("shots")),
        _text(result.extra("version")),
    )


def _text(value: Any) -> str:
    if value is None:
        return _UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
