"""Paired statistics: which differences between models are more than chance.

All models answer the same questions, so they are compared question by question: McNemar's exact
test on the questions that only one of two gets right, and a paired bootstrap interval of the
difference in accuracy. P-values are corrected over the whole table (Holm), and methods that the
corrected tests cannot distinguish share a letter.

Example::

    result = compare({"dense": dense.tasks, "shortgpt@0.25": pruned.tasks}, reference="dense")
    result.rows[0].difference, result.rows[0].p_holm
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Bools, align
from streamline.results.averages import grouped_by_task
from streamline.results.statistics import (
    RESAMPLES,
    compact_letters,
    difference_interval,
    holm,
    mcnemar,
    noise_floor,
)

__all__ = ["POOLED", "Comparison", "Difference", "compare"]

POOLED = "all questions"


@dataclass(frozen=True, kw_only=True)
class Difference:
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
        letters: Model -> letters; two models that share a letter cannot be distinguished over all
            questions (pairwise McNemar tests, Holm-corrected).
        alpha: The level of significance; intervals cover 1 - alpha.
        seed: The bootstrap's, with the answers that are compared.
    """

    reference: str
    best: str | None
    rows: tuple[Difference, ...]
    letters: Mapping[str, str]
    alpha: float
    seed: int


def compare(
    models: Mapping[str, Mapping[str, Answers]],
    reference: str,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
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
    rows = _rows(marks, others, reference, alpha, resamples, seed)
    if best is not None:
        rest = [name for name in others if name != best]
        rows += _rows(marks, rest, best, alpha, resamples, seed)
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
        blocks = grouped_by_task((task, own[task]) for task in first)
        marks[name] = {task: np.concatenate(block) for task, block in blocks.items()}
        marks[name][POOLED] = np.concatenate([own[task] for task in first])
    return marks


def _rows(
    marks: Mapping[str, Mapping[str, Bools]],
    names: Sequence[str],
    against: str,
    alpha: float,
    resamples: int,
    seed: int,
) -> list[Difference]:
    """Each name against one model on each task; p-values corrected over all of these.

    What the bootstrap draws depends on the answers of the two and the seed alone, so that a pair
    has one interval, whatever else stands in the table.
    """
    keys = [(task, name) for task in marks[against] for name in names]
    values = [mcnemar(marks[name][task], marks[against][task]) for task, name in keys]
    rows = []
    for (task, name), p, p_holm in zip(keys, values, holm(values), strict=True):
        mine, theirs = marks[name][task], marks[against][task]
        gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        drawn = hashlib.sha256(np.packbits(mine).tobytes() + np.packbits(theirs).tobytes())
        rng = np.random.default_rng([seed, len(mine), int.from_bytes(drawn.digest()[:8], "big")])
        low, high = difference_interval(mine, theirs, rng, alpha, resamples)
        rows.append(
            Difference(
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
