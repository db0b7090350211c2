"""Averages over tasks, in which the subjects of MMLU and of CMMLU together count as one task.

The one place that knows, by their full names, which tasks are subjects of a group, and how values
of several tasks become one: fractions are averaged without weights, standard errors are combined as
those of independent values, counts are added up, and what is missing in one task is missing in the
mean.

Example::

    average({"piqa": 0.7, "mmlu_anatomy": 0.3, "mmlu_virology": 0.5})      # (0.7 + 0.4) / 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from streamline.errors import ConfigError
from streamline.results.metrics import is_fraction
from streamline.results.record import Record, Summary, TaskResult
from streamline.results.subjects import CMMLU_SUBJECTS, MMLU_SUBJECTS

__all__ = [
    "average",
    "averaged_tasks",
    "averages_of",
    "collapsed_tasks",
    "group_of",
    "grouped_by_task",
    "in_averages",
    "mean",
    "mean_stderr",
    "relative_accuracy",
    "total",
]

#: Group -> its subjects, and what stands before a subject's name: in lm-eval and OpenCompass, or
#: in this package's own tasks.
_GROUPS = {
    "mmlu": (MMLU_SUBJECTS, ("mmlu_", "lukaemon_mmlu_")),
    "cmmlu": (tuple(CMMLU_SUBJECTS), ("cmmlu_", "cmmlu-")),
    "streamline_mmlu": (MMLU_SUBJECTS, ("streamline_mmlu_",)),
    "streamline_cmmlu": (tuple(CMMLU_SUBJECTS), ("streamline_cmmlu_",)),
}
_GROUP_OF = {
    before + subject: group
    for group, (subjects, befores) in _GROUPS.items()
    for before in befores
    for subject in subjects
}

Item = TypeVar("Item")


def group_of(task: str) -> str | None:
    """The group that a task is a subject of, by its full name, or None for any other task.

    ``mmlu`` or ``cmmlu``, and ``streamline_mmlu`` or ``streamline_cmmlu`` for this package's own.
    """
    return _GROUP_OF.get(task)


def grouped_by_task(
    items: Iterable[tuple[str, Item]], kind: Callable[[Item], object] | None = None
) -> dict[str, list[Item]]:
    """Items by task, those of a group's subjects together under the group's name.

    Args:
        items: Task and item, each task once.
        kind: What must be equal to be put together, such as the metric; subjects of several kinds
            stay by themselves.

    Returns:
        Task or group -> items, in the order of first appearance.
    """
    given = list(items)
    kinds: dict[str, set[object]] = {}
    for task, item in given:
        kinds.setdefault(group_of(task) or task, set()).add(kind(item) if kind else None)
    blocks: dict[str, list[Item]] = {}
    for task, item in given:
        group = group_of(task)
        together = group is not None and len(kinds[group]) == 1
        blocks.setdefault(group if group and together else task, []).append(item)
    return blocks


def mean(values: Sequence[float | None]) -> float | None:
    """Unweighted mean; None for no value, or if one is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def mean_stderr(errors: Sequence[float | None]) -> float | None:
    """Standard error of the unweighted mean of independent values; None if one is missing."""
    known = [error for error in errors if error is not None]
    if not known or len(known) != len(errors):
        return None
    return float(np.sqrt(np.sum(np.square(known)))) / len(known)


def total(counts: Sequence[int | None]) -> int | None:
    """Sum; None for no count, or if one is missing."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def average(values: Mapping[str, float | None]) -> float | None:
    """Unweighted mean over tasks.

    Args:
        values: A value for each task.

    Returns:
        The mean; None if there is no task or a value is missing, since a mean over fewer tasks
        could not be compared with another.
    """
    return mean([mean(block) for block in grouped_by_task(values.items()).values()])


def relative_accuracy(
    pruned: Mapping[str, float | None], dense: Mapping[str, float | None]
) -> float | None:
    """What a pruned model keeps: the ratio of the two average accuracies.

    Args:
        pruned: Accuracy by task.
        dense: Accuracy by task, of the same tasks.

    Returns:
        The ratio (not the mean of ratios); None if a value is missing or the dense mean is 0.

    Raises:
        ConfigError: If the two have different tasks.
    """
    if set(pruned) != set(dense):
        odd = sorted(set(pruned) ^ set(dense))
        raise ConfigError(
            f"Relative accuracy needs the same tasks on both sides; {', '.join(odd)} is on one "
            "only. Evaluate both models on the same tasks."
        )
    top, bottom = average(pruned), average(dense)
    return top / bottom if top is not None and bottom else None


def collapsed_tasks(record: Record) -> dict[str, TaskResult]:
    """A record's tasks, with the subjects of a group as one task."""
    blocks = grouped_by_task(
        ((task, (task, result)) for task, result in record.tasks.items()),
        lambda item: (item[1].metric, item[1].extra("protocol")),
    )
    return {
        name: block[0][1]
        if len(block) == 1 and block[0][0] == name
        else _macro([result for _, result in block])
        for name, block in blocks.items()
    }


def averaged_tasks(record: Record) -> dict[str, TaskResult]:
    """The tasks that are in a record's averages, the subjects of a group as one.

    Those with right answers that could be asked; where they were scored in several ways, which are
    never averaged together, those of the way with the most tasks, of equal ones the first by name.
    """
    asked = {
        name: result
        for name, result in record.tasks.items()
        if result.value is not None or result.n is not None
    }
    ways: dict[str, dict[str, TaskResult]] = {}
    for name, result in collapsed_tasks(record.model_copy(update={"tasks": asked})).items():
        if is_fraction(result.metric):
            ways.setdefault(str(result.extra("protocol")), {})[name] = result
    return max((ways[way] for way in sorted(ways)), key=len, default={})


def in_averages(record: Record) -> Callable[[str], bool]:
    """Which of a record's tasks, and of those that its rows are made of, are in its averages."""
    averaged = averaged_tasks(record)
    found = {str(result.extra("protocol")) for result in averaged.values()}
    out = {
        task
        for name, result in record.tasks.items()
        if is_fraction(result.metric) and str(result.extra("protocol")) not in found
        for task in (name, *(result.extra("subtasks") or ()))
    }
    return lambda task: task not in out


def averages_of(record: Record) -> Summary:
    """A record's averages, over :func:`averaged_tasks`."""
    by_protocol = record.summary.extra("by_protocol")
    averaged = averaged_tasks(record) if by_protocol else {}
    if not averaged:
        return record.summary
    (protocol,) = {str(result.extra("protocol")) for result in averaged.values()}
    return Summary.model_validate(record.summary.model_dump() | by_protocol.get(protocol, {}))


def _macro(block: Sequence[TaskResult]) -> TaskResult:
    """One result for the subjects of a group."""
    fields: dict[str, Any] = {
        "metric": block[0].metric,
        "value": mean([result.value for result in block]),
        "stderr": mean_stderr([result.stderr for result in block]),
        "n": total([result.n for result in block]),
        "stability": mean([result.stability for result in block]),
        "stability_stderr": mean_stderr([result.extra("stability_stderr") for result in block]),
        "agreement": mean([result.extra("agreement") for result in block]),
        "subjects": len(block),
        **{
            name: block[0].extra(name)
            for name in ("version", "protocol", "split", "shots", "prompts")
        },
    }
    counts = [result.extra("counts") for result in block]
    if all(isinstance(item, dict) for item in counts):
        fields["counts"] = {name: total([item.get(name) for item in counts]) for name in counts[0]}
        stds = [result.extra("option_std") for result in block]
        if all(isinstance(item, dict) for item in stds):
            fields["option_std"] = _weighted(counts, stds)
    return TaskResult.model_validate(fields)


def _weighted(
    counts: Sequence[Mapping[str, int | None]], values: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    """Means of values by kind over blocks, each weighed by its count of that kind."""
    found: dict[str, float | None] = {}
    for kind in counts[0]:
        pairs = [
            (count.get(kind) or 0, each.get(kind))
            for count, each in zip(counts, values, strict=True)
        ]
        n = sum(count for count, value in pairs if value is not None)
        found[kind] = sum(c * v for c, v in pairs if v is not None) / n if n else None
    return found
