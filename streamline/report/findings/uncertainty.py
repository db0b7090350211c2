"""Standard errors of what a record averages: accuracy, its ratio to dense, stability, perplexity.

Tasks are taken as independent, the questions of one task as a sample. The ratio to dense is paired:
both models answered the same questions, and a record counts which of them only one gets right.

Example::

    estimate = relative(record, dense)
    estimate.value, estimate.stderr          # 0.84, 0.031
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamline.results.averages import averaged_tasks, averages_of, mean_stderr
from streamline.results.record import Record, TaskResult

__all__ = [
    "Estimate",
    "accuracy",
    "over_seeds",
    "perplexity",
    "relative",
    "same",
    "stability",
]

#: Standard errors to each side of a 95 % interval.
Z95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A value and one standard error, None where that is not known."""

    value: float
    stderr: float | None = None

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; the value itself where the error is not known."""
        return self.value - Z95 * (self.stderr or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; the value itself where the error is not known."""
        return self.value + Z95 * (self.stderr or 0.0)


def accuracy(record: Record) -> Estimate | None:
    """The average accuracy of a record."""
    value = averages_of(record).accuracy
    if value is None:
        return None
    errors = [result.stderr for result in averaged_tasks(record).values()]
    return Estimate(value, mean_stderr(errors))


def stability(record: Record) -> Estimate | None:
    """The average stability of a record."""
    value = averages_of(record).stability
    if value is None or record.method == "dense":
        return None if value is None else Estimate(value)  # 1, without an error
    errors = [result.extra("stability_stderr") for result in averaged_tasks(record).values()]
    return Estimate(value, mean_stderr(errors))


def perplexity(record: Record, text: str) -> Estimate | None:
    """The perplexity of a text; its error is that of the mean loss, carried over."""
    value = record.summary.perplexity.get(text)
    if value is None:
        return None
    facts = (record.summary.extra("perplexity_facts") or {}).get(text) or {}
    error = facts.get("mean_nll_stderr")
    return Estimate(value, None if error is None else value * error)


def relative(record: Record, dense: Record | None) -> Estimate | None:
    """The ratio of two average accuracies, by the delta method.

    With counts of both right, lost and gained the two are paired; a task without them is taken as
    if the models had answered different questions, which makes the error larger.

    Args:
        record: Whose ratio is wanted.
        dense: The dense model's record, on the same questions.
    """
    ratio = averages_of(record).relative_accuracy
    if ratio is None:
        return None
    own = accuracy(record)
    if dense is None or own is None or own.stderr is None or record.method == "dense":
        return Estimate(ratio)  # the dense model's own ratio is 1, without an error
    base, tasks = accuracy(dense), averaged_tasks(dense)
    if base is None or base.stderr is None or not base.value:
        return Estimate(ratio)
    shared = [
        _covariance(result, tasks[name])
        for name, result in averaged_tasks(record).items()
        if name in tasks
    ]
    covariance = sum(shared) / len(shared) ** 2
    variance = own.stderr**2 - 2 * ratio * covariance + (ratio * base.stderr) ** 2
    return Estimate(ratio, math.sqrt(max(0.0, variance)) / base.value)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for several seeds of a cell, which answered the same questions.

    The error has the questions' part, which more seeds do not lessen, and the seeds'.
    """
    value = float(np.mean([one.value for one in estimates]))
    errors = [one.stderr for one in estimates if one.stderr is not None]
    if len(errors) < len(estimates):
        return Estimate(value)
    spread = np.var([one.value for one in estimates], ddof=1) if len(estimates) > 1 else 0.0
    return Estimate(value, math.sqrt(float(np.mean(errors)) ** 2 + spread / len(estimates)))


def same(first: Estimate, second: Estimate) -> bool:
    """Whether two values cannot be told apart at 95 %, were they of different questions."""
    if first.stderr is None or second.stderr is None:
        return first.value == second.value
    return abs(first.value - second.value) <= Z95 * math.hypot(first.stderr, second.stderr)


def _covariance(one: TaskResult, dense: TaskResult) -> float:
    """Of the two accuracies of a task; 0 where the record does not count what both get right."""
    counts, n = one.extra("counts"), one.n
    if not isinstance(counts, dict) or not n or n < 2 or one.value is None or dense.value is None:
        return 0.0
    both = counts.get("both_right")
    return 0.0 if both is None else (both / n - one.value * dense.value) / (n - 1)
