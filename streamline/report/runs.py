"""Runs' folders as what a report is made of: one, or several side by side.

Folders may hold other models, methods, sparsities, seeds, or come from other machines. What cannot
be compared is refused: other questions or ways of scoring under one name, other weights or another
experiment under the name of one model or cell.

Example::

    runs, notes = side_by_side([RunFolder(path=Path("a"), records=load("a")), ...])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.results.averages import averaged_tasks, averages_of, collapsed_tasks
from streamline.results.record import Identity, Record, label

__all__ = ["RunFolder", "flat", "side_by_side"]

#: Settings that say where and how fast a run was, not what was measured.
_OF_NO_MATTER = (
    "out", "suite", "sources", "models", "methods", "sparsities", "seeds", "recovery", "tasks",
    "device", "batch_tokens", "executor", "efficiency", "save",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run.

    Attributes:
        path: Its folder; samples, losses and calibrations are read where they are there.
        records: Its cells.
        settings: Its ``run.json``, empty if it was not kept.
        commands: The command lines that made it, or one that repeats it.
        made: When, and by which code, as far as that was kept.
    """

    path: Path
    records: Sequence[Record]
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How a report calls it, wherever it lies."""
        return self.path.name or str(self.path)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names; nothing for None."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value


def side_by_side(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[str]]:
    """Several runs without the cells that an earlier one has too.

    Args:
        runs: In the order in which they are to appear.

    Returns:
        The runs, and notes on cells that were measured in several.

    Raises:
        ConfigError: If a task was scored on other questions or in another way, a model has other
            weights, a text was cut otherwise, or two runs hold one cell with other settings.
    """
    facts: dict[tuple[str, ...], tuple[Any, RunFolder]] = {}
    kept: dict[Identity, tuple[Record, RunFolder]] = {}
    notes: list[str] = []
    for run in runs:
        for record in run.records:
            if record.status == "ok":
                _agree(facts, record, run)
            if record.identity not in kept:
                kept[record.identity] = (record, run)
                continue
            before, other = kept[record.identity]
            if other is run or record.status != "ok":
                continue
            if before.status != "ok":
                kept[record.identity] = (record, run)
            elif (note := _twice(before, other, record, run)) is not None:
                notes.append(note)
    mine = {id(record) for record, _ in kept.values()}
    only = [replace(run, records=[one for one in run.records if id(one) in mine]) for run in runs]
    return only, notes


def _agree(
    facts: dict[tuple[str, ...], tuple[Any, RunFolder]], record: Record, run: RunFolder
) -> None:
    """Refuse a record that says something else of a task, a text or a model than one before."""
    for what, value in _facts(record):
        before, other = facts.setdefault(what, (value, run))
        if before != value and other is not run:
            *name, fact = what
            raise ConfigError(
                f"{other.path} and {run.path} cannot be put side by side: {fact} of "
                f"{' '.join(name)} is {before} in the first and {value} in the second. Give runs "
                "of the same questions, scored alike, or report each by itself."
            )


def _facts(record: Record) -> Iterator[tuple[tuple[str, ...], Any]]:
    for task, result in record.tasks.items():
        scored = {"metric": result.metric, "n": result.n, "data_hash": result.extra("data_hash")}
        for fact, value in (scored | result.asked).items():
            if value is not None:
                yield ("task", task, fact), value
    if averages_of(record).accuracy is not None:
        yield ("the average of", record.model, "the tasks"), sorted(averaged_tasks(record))
    weights = record.versions.get("model_sha256")
    if weights is not None:
        yield ("model", record.model, "the weights' hash"), weights
    for text, read in (record.summary.extra("perplexity_facts") or {}).items():
        if isinstance(read, Mapping):
            yield ("text", text, "the window"), read.get("window")
            yield ("text", text, record.model, "the number of tokens"), read.get("n_tokens")


def _twice(before: Record, first: RunFolder, again: Record, second: RunFolder) -> str | None:
    """A note on a cell of two runs whose numbers differ, None where they do not.

    Raises:
        ConfigError: If the two are different experiments.
    """
    if _numbers(before) == _numbers(again):
        return None
    name = f"{again.model} {label(again)}"
    if before.key is None or before.key != again.key:
        raise ConfigError(
            f"{first.path} and {second.path} both hold {name}, measured with other settings: "
            f"{_differing(before, first, again, second)}. Report each by itself, or remove one of "
            "the two with `streamline-bench rm`."
        )
    return f"{name} was measured in {first.path} and {second.path}; the first one's numbers stand."


def _numbers(record: Record) -> Any:
    tasks = {task: result.value for task, result in collapsed_tasks(record).items()}
    return tasks, record.summary.perplexity, record.parameters.pruned


def _differing(before: Record, first: RunFolder, again: Record, second: RunFolder) -> str:
    """In what two experiments of one name differ, as far as it was kept."""
    one, other = (
        {name: text for name, text in flat(run.settings) if name.split(".")[0] not in _OF_NO_MATTER}
        for run in (first, second)
    )
    one["the method"], other["the method"] = before.method_repr, again.method_repr
    found = [
        f"{name} is {one.get(name)} and {other.get(name)}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]
    return "; ".join(found) or "their keys differ, and the settings do not say in what"
