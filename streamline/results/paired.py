"""Paired differences in stability and perplexity between models.

All models answered the same questions and read the same windows, so a difference between two is
far surer than the errors of each say: what is common to both, such as a window that is hard for
all, is in neither's favour. Where models were made with several seeds, these are samples too.

Example::

    found = stability_difference([dense.tasks], [a.tasks], [b.tasks])
    found.value, found.low, found.high, found.p        # 0.021, 0.004, 0.038, 0.016

Notation: T tasks, N questions of one, S seeds of a model, W windows of a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Floats, align
from streamline.results.averages import group_of
from streamline.results.stability import option_std, question_weights
from streamline.results.statistics import holm, variance_of_mean, welch

__all__ = ["AgainstBest", "Paired", "against_best", "perplexity_ratio", "stability_difference"]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Paired:
    """A difference between two models, with a 1 - alpha interval.

    Attributes:
        value: Of the first less that of the second; of perplexities the first over the second.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value of no difference, by Student's t; None where nothing varies, such as
            for one window.
    """

    value: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True, kw_only=True)
class AgainstBest:
    """Models beside the best of them under one measure.

    Attributes:
        best: The best one's name.
        values: Each model's value, the mean over its seeds, in order, the best first.
        differences: Every other model's difference from the best.
        p_holm: Their p-values, corrected for their number by Holm's rule; None where a difference
            has none.
    """

    best: str
    values: Mapping[str, float]
    differences: Mapping[str, Paired]
    p_holm: Mapping[str, float | None]

    def apart(self, name: str, alpha: float = 0.05) -> bool:
        """Whether a model is told apart from the best."""
        p = self.p_holm.get(name)
        return p is not None and p < alpha


def against_best(
    values: Mapping[str, float], difference: Callable[[str, str], Paired], *, lowest: bool = False
) -> AgainstBest:
    """Compare models with the best of them.

    Args:
        values: Each model's value.
        difference: Compares two, by their names.
        lowest: Whether the lowest value is the best one.
    """
    ranked = dict(sorted(values.items(), key=lambda item: item[1] if lowest else -item[1]))
    best, *others = ranked
    found = {name: difference(name, best) for name in others}
    known = {name: one.p for name, one in found.items() if one.p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    p_holm = {name: corrected.get(name) for name in others}
    return AgainstBest(best=best, values=ranked, differences=found, p_holm=p_holm)


def stability_difference(
    dense: Mapping[str, Answers],
    first: Sequence[Mapping[str, Answers]],
    second: Sequence[Mapping[str, Answers]],
    *,
    alpha: float = 0.05,
) -> Paired:
    """How much more stable one model is than another, on average over tasks.

    The weights are the dense model's, so each question adds its weight or nothing to a task's
    difference; the standard error is the delta method's of
    :func:`streamline.results.stability.weighted_fraction`, of the questions' differences.

    Args:
        dense: The dense model's answers by task; tasks without options are left out.
        first: A model's answers by task, for each of its seeds.
        second: Another's.
        alpha: The interval covers 1 - alpha.

    Raises:
        ConfigError: If the models answer different questions, or no task has options.
    """
    tasks = {name: task for name, task in dense.items() if task.nll is not None}
    if not tasks:
        raise ConfigError("no task has options to compare, so there is no stability")
    groups: dict[str, list[str]] = {}
    for name in tasks:
        groups.setdefault(group_of(name) or name, []).append(name)
    value = questions = 0.0
    freedom = 0
    values = [np.zeros(len(seeds)) for seeds in (first, second)]
    for name, task in tasks.items():
        share = 1 / len(groups) / len(groups[group_of(name) or name])
        weights = question_weights(option_std(task.nll or ()))
        stable = [
            np.stack([align(task, seed[name]).correct == task.correct for seed in seeds])
            for seeds in (first, second)
        ]  # [S, N] each
        for sums, marks in zip(values, stable, strict=True):
            sums += share * (marks @ weights)
        each = stable[0].mean(0) - stable[1].mean(0)
        difference, n = float(weights @ each), len(each)
        value += share * difference
        if n > 1:
            spread = float(np.sum(weights**2 * (each - difference) ** 2))
            questions += share**2 * spread * n / (n - 1)
            freedom += n - 1
    low, high, p = _tested(value, [(questions, freedom), *map(variance_of_mean, values)], alpha)
    return Paired(value, low, high, p)


def perplexity_ratio(
    first: Sequence[Floats], second: Sequence[Floats], *, alpha: float = 0.05
) -> Paired:
    """One model's perplexity over another's on the same windows of a text.

    The mean difference of the windows' losses, raised; windows are taken as independent.

    Args:
        first: Of each seed the mean NLL of a token of each window, in nats, [W].
        second: Another model's.
        alpha: The interval covers 1 - alpha.

    Raises:
        ConfigError: If the two did not read the same number of windows.
    """
    if len({len(row) for row in (*first, *second)}) != 1:
        raise ConfigError("the two models' perplexities are of different numbers of windows")
    a, b = np.stack(first), np.stack(second)
    each = a.mean(0) - b.mean(0)
    value = float(each.mean())
    parts = map(variance_of_mean, (each, a.mean(1), b.mean(1)))
    low, high, p = _tested(value, list(parts), alpha)
    return Paired(math.exp(value), math.exp(low), math.exp(high), p)


def _tested(
    value: float, parts: Sequence[tuple[float, int]], alpha: float
) -> tuple[float, float, float | None]:
    """Interval and p-value of a value whose variance is a sum."""
    found = welch(value, parts, alpha)
    if found is None:  # all alike; nothing says how far chance goes if they differ
        return value, value, 1.0 if abs(value) < _ROUNDING else None
    reach, p = found
    return value - reach, value + reach, p
