"""Paired statistics: which differences between models are more than chance.

All models answer the same questions, so they are compared question by question: McNemar's exact
test on the questions that only one of two gets right, and a paired bootstrap interval of the
difference in accuracy. P-values are corrected over the whole table (Holm), and methods that the
corrected tests cannot tell apart share a letter.

Example::

    result = compare({"dense": dense.tasks, "shortgpt@0.25": pruned.tasks}, reference="dense")
    result.rows[0].difference, result.rows[0].p_holm
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Bools, align, group_of

__all__ = [
    "POOLED",
    "Comparison",
    "Row",
    "compact_letters",
    "compare",
    "difference_interval",
    "holm",
    "mcnemar",
    "noise_floor",
]

POOLED = "all questions"
_RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model against another on one task, or on all questions together.

    Attributes:
        task: The task, or ``all questions``.
        model: The model that is compared.
        against: The one it is compared with.
        n: Number of questions.
        accuracy: Of ``model``, in [0, 1].
        difference: Accuracy of ``model`` minus that of ``against``.
        low: Lower end of the difference's interval.
        high: Upper end.
        gained: Questions that only ``model`` gets right.
        lost: Questions that only ``against`` gets right.
        p: McNemar's exact p-value, two-sided.
        p_holm: The same, corrected over the comparisons with the same aim.
        floor: The smallest difference that would be significant here (see ``noise_floor``).
    """

    task: str
    model: str
    against: str
    n: int
    accuracy: float
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    p_holm: float
    floor: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of comparisons.

    Attributes:
        reference: The model that all are compared with, such as the dense one.
        best: The best other model over all questions; also compared with, None if there is one
            model beside the reference.
        rows: Against the reference, then against the best.
        letters: Model -> letters; two models that share a letter cannot be told apart over all
            questions (pairwise McNemar tests, Holm-corrected).
        alpha: The level of significance; intervals cover 1 - alpha.
        seed: The bootstrap's.
    """

    reference: str
    best: str | None
    rows: tuple[Row, ...]
    letters: Mapping[str, str]
    alpha: float
    seed: int


def compare(
    models: Mapping[str, Mapping[str, Answers]],
    reference: str,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = _RESAMPLES,
    versions: Mapping[str, Mapping[str, object]] | None = None,
    pooled_only: bool = False,
) -> Comparison:
    """Compare models with a reference and with the best of them.

    Args:
        models: Name -> answers by task; at least two, all with the same tasks and questions.
        reference: The name of the one that all are compared with.
        alpha: Level of significance.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        versions: Name -> task -> version of the task, where known.
        pooled_only: Whether to test only all questions together, and no single task.

    Returns:
        The table.

    Raises:
        ConfigError: If there are fewer than two models, the reference is none of them, or tasks,
            task versions, metrics or questions differ.
    """
    if len(models) < 2 or reference not in models:
        raise ConfigError(
            f"A comparison needs two models or more and one of them as the reference; given are "
            f"{', '.join(models) or 'none'} and the reference {reference}."
        )
    marks = _marks(models, reference, versions or {})
    if pooled_only:
        marks = {name: {POOLED: own[POOLED]} for name, own in marks.items()}
    others = [name for name in models if name != reference]
    pooled = {name: marks[name][POOLED] for name in models}
    best = max(others, key=lambda name: float(pooled[name].mean())) if len(others) > 1 else None
    rng = np.random.default_rng(seed)
    rows = _rows(marks, others, reference, alpha, resamples, rng)
    if best is not None:
        rest = [name for name in others if name != best]
        rows += _rows(marks, rest, best, alpha, resamples, rng)
    pairs = list(itertools.combinations(models, 2))
    corrected = holm([mcnemar(pooled[a], pooled[b]) for a, b in pairs])
    apart = {frozenset(pair) for pair, p in zip(pairs, corrected, strict=True) if p < alpha}
    ranked = sorted(models, key=lambda name: -float(pooled[name].mean()))
    return Comparison(
        reference=reference,
        best=best,
        rows=tuple(rows),
        letters=compact_letters(ranked, apart),
        alpha=alpha,
        seed=seed,
    )


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
    resamples: int = _RESAMPLES,
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


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule, in the given order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
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
        raise ConfigError(f"The noise floor of {n} questions was asked; give at least one.")
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
    """Letters such that two names share one exactly if they are not told apart.

    Each letter stands for a largest set of names of which no two are told apart.

    Args:
        ranked: The names, best first.
        apart: The pairs that are told apart.

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
            for place, group in enumerate(split)
            if not any(
                group < other or (group == other and place > number)
                for number, other in enumerate(split)
                if number != place
            )
        ]
    places = {name: place for place, name in enumerate(ranked)}
    groups.sort(key=lambda group: sorted(places[name] for name in group))
    return {
        name: "".join(_letter(number) for number, group in enumerate(groups) if name in group)
        for name in ranked
    }


def _letter(number: int) -> str:
    """A to z, then a1, b1 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _marks(
    models: Mapping[str, Mapping[str, Answers]],
    reference: str,
    versions: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, Bools]]:
    """Right or wrong by model and task in the reference's order, and pooled over tasks.

    The subjects of MMLU and CMMLU are put together as one task each.
    """
    first = models[reference]
    marks: dict[str, dict[str, Bools]] = {}
    for name, tasks in models.items():
        odd = sorted(set(tasks) ^ set(first))
        if odd:
            raise ConfigError(
                f"{name} and {reference} were not evaluated on the same tasks: "
                f"{', '.join(odd)} is on one side only. Evaluate both on the same tasks."
            )
        own: dict[str, Bools] = {}
        for task, answers in tasks.items():
            pair = [versions.get(model, {}).get(task) for model in (reference, name)]
            if None not in pair and pair[0] != pair[1]:
                raise ConfigError(
                    f"Task {task} has version {pair[0]} in {reference} and {pair[1]} in {name}; "
                    "evaluate both with one version of the task."
                )
            if answers.metric != first[task].metric:
                raise ConfigError(
                    f"Task {task} is scored by {first[task].metric} in {reference} and by "
                    f"{answers.metric} in {name}; evaluate both under one metric."
                )
            own[task] = align(first[task], answers).correct
        if not own:
            raise ConfigError(f"{name} has no task to compare. Evaluate it first.")
        blocks: dict[str, list[Bools]] = {}
        for task in first:
            blocks.setdefault(group_of(task) or task, []).append(own[task])
        marks[name] = {task: np.concatenate(block) for task, block in blocks.items()}
        marks[name][POOLED] = np.concatenate([own[task] for task in first])
    return marks


def _rows(
    marks: Mapping[str, Mapping[str, Bools]],
    names: Sequence[str],
    against: str,
    alpha: float,
    resamples: int,
    rng: np.random.Generator,
) -> list[Row]:
    """Each name against one model on each task; p-values corrected over all of these."""
    keys = [(task, name) for task in marks[against] for name in names]
    values = [mcnemar(marks[name][task], marks[against][task]) for task, name in keys]
    rows = []
    for (task, name), p, p_holm in zip(keys, values, holm(values), strict=True):
        mine, theirs = marks[name][task], marks[against][task]
        gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        low, high = difference_interval(mine, theirs, rng, alpha, resamples)
        rows.append(
            Row(
                task=task,
                model=name,
                against=against,
                n=len(mine),
                accuracy=float(mine.mean()),
                difference=(gained - lost) / len(mine),
                low=low,
                high=high,
                gained=gained,
                lost=lost,
                p=p,
                p_holm=p_holm,
                floor=noise_floor(len(mine), gained + lost, alpha),
            )
        )
    return rows
