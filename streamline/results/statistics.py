"""Tests, intervals and groups for models that answered the same questions.

Example::

    p = mcnemar(first.correct, second.correct)
    low, high = difference_interval(first.correct, second.correct, np.random.default_rng(0))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Bools, Floats

__all__ = [
    "RESAMPLES", "Tested", "compact_letters", "difference_interval", "holm", "mcnemar",
    "noise_floor", "seeds_test", "variance_of_mean", "welch",
]  # fmt: skip

RESAMPLES = 9999

#: A variance below it is rounding.
_NOTHING = 1e-24


class Tested(NamedTuple):
    """What a test says of a difference.

    Attributes:
        low: Lower end of its interval.
        high: Upper end.
        p: Two-sided p-value.
        floor: The smallest difference that would be significant.
    """

    low: float
    high: float
    p: float
    floor: float


def mcnemar(first: Bools, second: Bools) -> float:
    """McNemar's exact test: are the questions that only one gets right evenly divided?

    Args:
        first: Right or wrong, [N].
        second: The same questions, [N].

    Returns:
        The two-sided p-value; 1 if the two never differ.

    Reference:
        McNemar, Psychometrika 12 (1947), in its exact binomial form.
    """
    from scipy.stats import binomtest

    gained = int((first & ~second).sum())
    lost = int((~first & second).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def difference_interval(
    first: Bools,
    second: Bools,
    rng: np.random.Generator,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Paired bootstrap interval of the difference in accuracy, first minus second.

    Questions are drawn with both models' answers together; the interval is the percentile one,
    which also stands where all differences are equal.

    Args:
        first: Right or wrong, [N].
        second: The same questions, [N].
        rng: Draws the resamples.
        alpha: The interval covers 1 - alpha.
        resamples: Their number.

    Returns:
        Its two ends.
    """
    from scipy.stats import bootstrap

    if len(first) < 2:
        value = float(first.mean() - second.mean())
        return value, value
    result = bootstrap(
        (first.astype(np.float64), second.astype(np.float64)),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(first)),
        confidence_level=1 - alpha,
        method="percentile",
        rng=rng,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def seeds_test(first: Bools, second: Bools, alpha: float = 0.05) -> Tested:
    """Test a difference in accuracy where models were made with several seeds.

    Questions and seeds are both samples: the question is whether the difference would be there with
    other questions and other seeds. Its variance is that of the mean over questions of
    the difference (each model's answers averaged over its seeds; paired, since all answer the same)
    plus, for each model, that of the mean over its seeds of its accuracy; the seeds of two models
    are taken as independent. A model of one seed adds nothing of its own. The statistic follows
    Student's t with the degrees of freedom of Welch and Satterthwaite, so that two seeds that
    differ a lot prove little, and seeds that agree cost nothing. Where nothing varies at all, the
    questions' signs are tested.

    Args:
        first: Right or wrong, [seeds, N].
        second: The same questions, [seeds, N]; the number of seeds may be another.
        alpha: The interval covers 1 - alpha.

    Reference:
        Satterthwaite, Biometrics Bulletin 2 (1946). What is between questions and seeds is counted
        in both parts, which errs on the side of no difference.
    """
    each = first.mean(0) - second.mean(0)  # [N]
    difference, n = float(each.mean()), len(each)
    seeds = (variance_of_mean(marks.mean(1)) for marks in (first, second))
    found = welch(difference, [variance_of_mean(each), *seeds], alpha)
    if found is None:  # every question differs alike: of its signs alone, as McNemar's test
        differing = n if abs(difference) > math.sqrt(_NOTHING) else 0
        p = min(1.0, 2.0 * 0.5**differing)
        return Tested(difference, difference, p, noise_floor(n, differing, alpha))
    floor, p = found
    return Tested(difference - floor, difference + floor, p, floor)


def variance_of_mean(values: Floats) -> tuple[float, int]:
    """The variance of the mean of a sample, and its degrees of freedom; 0 and 0 for one value."""
    n = len(values)
    return (float(values.var(ddof=1)) / n, n - 1) if n > 1 else (0.0, 0)


def welch(
    value: float, parts: Sequence[tuple[float, int]], alpha: float = 0.05
) -> tuple[float, float] | None:
    """Student's t for a value whose variance is a sum, with Welch and Satterthwaite's freedom.

    Args:
        value: That is tested against 0.
        parts: Each part of its variance with the degrees of freedom; 0 of them where it is 0.
        alpha: The interval covers 1 - alpha.

    Returns:
        How far the interval reaches to each side, and the two-sided p-value; None where nothing
        varies.
    """
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if variance < _NOTHING:
        return None
    freedom = variance**2 / sum(part**2 / least for part, least in parts if least)
    error = math.sqrt(variance)
    reach = float(t.isf(alpha / 2, freedom)) * error
    return reach, float(2 * t.sf(abs(value) / error, freedom))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule, in the given order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def noise_floor(n: int, differing: int | None = None, alpha: float = 0.05) -> float:
    """The smallest difference in accuracy that McNemar's exact test can find.

    Args:
        n: Number of questions.
        differing: How many questions only one of the two gets right. Without it, the most
            favourable case: as few as can be significant, all in one direction.
        alpha: Level of significance.

    Returns:
        The difference in [0, 1]; infinity if none would be significant.

    Raises:
        ConfigError: If there is no question.
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ConfigError(f"The noise floor needs at least one question, got {n}.")
    if differing is None:
        fewest = math.floor(math.log2(2 / alpha)) + 1  # 2 * 0.5^k < alpha
        return fewest / n if fewest <= n else math.inf
    for lead in range(differing % 2, differing + 1, 2):
        if lead and binomtest((differing + lead) // 2, differing, 0.5).pvalue < alpha:
            return lead / n
    return math.inf


def compact_letters(
    ranked: Sequence[str], apart: set[frozenset[str]] | Sequence[frozenset[str]]
) -> dict[str, str]:
    """Letters such that two names share one exactly if they are not distinguished.

    Each letter is a largest set of names of which no two are distinguished.

    Args:
        ranked: The names, best first.
        apart: The pairs that are distinguished.

    Returns:
        Name -> letters; ``a`` belongs to the best.
    """
    pairs = set(apart)
    groups: list[set[str]] = [set(ranked)]
    for pair in sorted(pairs, key=lambda item: sorted(item)):
        split: list[set[str]] = []
        for group in groups:
            split += [group - {name} for name in pair] if pair <= group else [group]
        groups = [
            group
            for index, group in enumerate(split)
            if not any(
                group < other or (group == other and index > number)
                for number, other in enumerate(split)
                if number != index
            )
        ]
    indices = {name: index for index, name in enumerate(ranked)}
    groups.sort(key=lambda group: sorted(indices[name] for name in group))
    return {
        name: "".join(_letter(number) for number, group in enumerate(groups) if name in group)
        for name in ranked
    }


def _letter(number: int) -> str:
    """A to z, then a1, b1 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")
