"""Paired statistics: which differences between models are more than chance.

All models answer the same questions, so they are compared question by question: McNemar's exact
test on the questions that only one of two gets right, and a paired bootstrap interval of the
difference in accuracy. Where a model was made with several seeds whose answers differ, questions
and seeds are tested together (``statistics.seeds_test``). P-values are corrected over the whole
table (Holm), and methods that the corrected tests cannot distinguish share a letter.

Example::

    result = compare({"dense": dense.tasks, "shortgpt@0.25": pruned.tasks}, reference="dense")
    result.rows[0].difference, result.rows[0].p_holm
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Bools, align
from streamline.results.averages import grouped_by_task
from streamline.results.paired import AgainstBest
from streamline.results.statistics import (
    RESAMPLES,
    Tested,
    compact_letters,
    difference_interval,
    holm,
    mcnemar,
    noise_floor,
    seeds_test,
)

__all__ = ["POOLED", "Comparison", "Difference", "Tasks", "compare"]

POOLED = "all questions"
#: A model's answers, and versions, by task, of one seed.
Tasks = Mapping[str, Answers]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model against another on one task, or on all questions together.

    Attributes:
        task: The task, or ``all questions``.
        model: The model that is compared.
        against: The one it is compared with.
        n: Number of questions.
        accuracy: Of ``model``, in [0, 1]; the mean over its seeds.
        difference: Accuracy of ``model`` minus that of ``against``.
        low: Lower end of the difference's interval.
        high: Upper end.
        gained: Questions that only ``model`` gets right; of several seeds the mean over pairs.
        lost: Questions that only ``against`` gets right, likewise.
        p: McNemar's exact p-value, or that of the test over questions and seeds; two-sided.
        p_holm: The same, corrected over the comparisons with the same aim.
        floor: The smallest difference that would be significant here (see ``noise_floor``).
        seeds: Seeds of the two whose answers differ, the larger number; 1 where they do not.
    """

    task: str
    model: str
    against: str
    n: int
    accuracy: float
    difference: float
    low: float
    high: float
    gained: float
    lost: float
    p: float
    p_holm: float
    floor: float
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of comparisons.

    Attributes:
        reference: The model that all are compared with, such as the dense one.
        best: The best other model over all questions; also compared with, None if there is one
            model beside the reference.
        rows: Against the reference, then against the best.
        letters: Model -> letters; two models that share a letter cannot be distinguished over all
            questions (pairwise tests, Holm-corrected).
        alpha: The level of significance; intervals cover 1 - alpha.
        seed: The bootstrap's, with the answers that are compared.
        paired: Measure (``stability``, ``perplexity TEXT``) -> the models beside the best one.
        pooled: What all questions together are of, in words.
    """

    reference: str
    best: str | None
    rows: tuple[Difference, ...]
    letters: Mapping[str, str]
    alpha: float
    seed: int
    paired: Mapping[str, AgainstBest] = field(default_factory=dict)
    pooled: str = "all tasks"


def compare(
    models: Mapping[str, Tasks | Sequence[Tasks]],
    reference: str,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
    pooled_only: bool = False,
) -> Comparison:
    """Compare models with a reference and with the best of them.

    Args:
        models: Name -> answers by task, or those of each seed; at least two, all with the same
            tasks and questions.
        reference: The name of the one that all are compared with.
        alpha: Level of significance.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        pooled_only: Whether to test only all questions together, and no single task.

    Returns:
        The table.

    Raises:
        ConfigError: If there are fewer than two models, the reference is none of them, or tasks,
            metrics, questions or how they were asked differ.
    """
    if len(models) < 2 or reference not in models:
        raise ConfigError(
            f"A comparison needs two models or more and one of them as the reference; given are "
            f"{', '.join(models) or 'none'} and the reference {reference}."
        )
    marks = _marks(_lists(models), reference)
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
    corrected = holm([_p_value(pooled[a], pooled[b]) for a, b in pairs])
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


def _marks(models: Mapping[str, Sequence[Tasks]], reference: str) -> dict[str, dict[str, Bools]]:
    """Right or wrong, [seeds, N], by model and task in the reference's order, and pooled.

    Seeds that gave the same answers to a task are one there. The subjects of MMLU and CMMLU are put
    together as one task each.
    """
    first = models[reference][0]
    found: dict[str, list[dict[str, Bools]]] = {}
    for name, tasks in [(one, tasks) for one in models for tasks in models[one]]:
        odd = sorted(set(tasks) ^ set(first))
        if odd:
            raise ConfigError(
                f"{name} and {reference} were not evaluated on the same tasks: "
                f"{', '.join(odd)} is on one side only. Evaluate both on the same tasks."
            )
        own: dict[str, Bools] = {}
        for task, answers in tasks.items():
            if answers.metric != first[task].metric:
                raise ConfigError(
                    f"Task {task} is scored by {first[task].metric} in {reference} and by "
                    f"{answers.metric} in {name}; evaluate both under one metric."
                )
            try:
                own[task] = align(first[task], answers).correct
            except ConfigError as error:
                raise ConfigError(f"{reference} and {name}: {error}") from None
        if not own:
            raise ConfigError(f"{name} has no task to compare. Evaluate it first.")
        blocks = grouped_by_task((task, own[task]) for task in first)
        marks = {task: np.concatenate(block) for task, block in blocks.items()}
        marks[POOLED] = np.concatenate([own[task] for task in first])
        found.setdefault(name, []).append(marks)
    return {name: _stacked(each) for name, each in found.items()}


def _lists(given: Mapping[str, Tasks | Sequence[Tasks]]) -> dict[str, list[Tasks]]:
    """What each model has, for each of its seeds."""
    return {name: [*own] if isinstance(own, Sequence) else [own] for name, own in given.items()}


def _stacked(seeds: Sequence[Mapping[str, Bools]]) -> dict[str, Bools]:
    """The answers of several seeds, [seeds, N] for each task; [1, N] where they are the same."""
    stacked = {task: np.stack([one[task] for one in seeds]) for task in seeds[0]}
    return {task: own[:1] if (own == own[0]).all() else own for task, own in stacked.items()}


def _p_value(first: Bools, second: Bools) -> float:
    """Of the difference between two models, [seeds, N] each."""
    if len(first) == len(second) == 1:
        return mcnemar(first[0], second[0])
    return seeds_test(first, second).p


def _tested(mine: Bools, theirs: Bools, alpha: float, resamples: int, seed: int) -> Tested:
    """The interval and the floor of a difference between two models, [seeds, N] each."""
    if max(len(mine), len(theirs)) > 1:
        return seeds_test(mine, theirs, alpha)
    one, other = mine[0], theirs[0]
    drawn = hashlib.sha256(np.packbits(one).tobytes() + np.packbits(other).tobytes())
    rng = np.random.default_rng([seed, len(one), int.from_bytes(drawn.digest()[:8], "big")])
    low, high = difference_interval(one, other, rng, alpha, resamples)
    return Tested(
        low, high, mcnemar(one, other), noise_floor(len(one), int((one ^ other).sum()), alpha)
    )


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
    tests = [
        _tested(marks[name][task], marks[against][task], alpha, resamples, seed)
        for task, name in keys
    ]
    rows = []
    for (task, name), found, p_holm in zip(
        keys, tests, holm([one.p for one in tests]), strict=True
    ):
        mine, theirs = marks[name][task], marks[against][task]
        right, other = mine.mean(0), theirs.mean(0)  # [N], over seeds
        gained, lost = (float(v.sum()) for v in (right * (1 - other), (1 - right) * other))
        seeds = max(len(mine), len(theirs))
        rows.append(
            Difference(
                task=task,
                model=name,
                against=against,
                n=mine.shape[1],
                accuracy=float(mine.mean()),
                difference=(gained - lost) / mine.shape[1],
                low=found.low,
                high=found.high,
                gained=gained if seeds > 1 else int(gained),
                lost=lost if seeds > 1 else int(lost),
                p=found.p,
                p_holm=p_holm,
                floor=found.floor,
                seeds=seeds,
            )
        )
    return rows
