"""Paired differences in stability and perplexity against brute force and planted differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamline.errors import ConfigError
from streamline.results.answers import Answers
from streamline.results.paired import (
    Paired,
    against_best,
    perplexity_ratio,
    stability_difference,
)
from streamline.results.stability import stability

RNG = np.random.default_rng(0)
SIZES = {"piqa": 300, "arc_easy": 200, "mmlu_anatomy": 50, "mmlu_virology": 60}


def answers(task: str, correct: np.ndarray, nll: np.ndarray | None = None) -> Answers:
    n = len(correct)
    return Answers(
        task=task,
        ids=tuple(map(str, range(n))),
        hashes=(None,) * n,
        correct=correct.astype(np.bool_),
        nll=None if nll is None else tuple(nll),
        nll_name=None if nll is None else "full prompt",
        metric="acc",
    )


DENSE = {
    task: answers(task, RNG.random(n) < 0.6, RNG.normal(size=(n, 4))) for task, n in SIZES.items()
}


def flipped(share: float, rng: np.random.Generator, base: dict[str, Answers] = DENSE):
    """A model that answers a share of the questions the other way."""
    return {
        task: answers(task, one.correct ^ (rng.random(len(one.ids)) < share))
        for task, one in base.items()
    }


def macro(model: dict[str, Answers]) -> float:
    """As a record averages: MMLU's subjects are one task."""
    own = {task: stability(DENSE[task], one).value for task, one in model.items()}
    mmlu = (own["mmlu_anatomy"] + own["mmlu_virology"]) / 2
    return float(np.mean([own["piqa"], own["arc_easy"], mmlu]))


def test_the_difference_is_that_of_the_two_stabilities():
    a, b = flipped(0.1, RNG), flipped(0.3, RNG)
    found = stability_difference(DENSE, [a], [b])
    assert found.value == pytest.approx(macro(a) - macro(b), abs=1e-12)
    other = stability_difference(DENSE, [b], [a])
    assert (other.value, other.low, other.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    assert found.p is not None and other.p == pytest.approx(found.p) and found.p < 1e-4
    assert stability_difference(DENSE, [a], [a]) == Paired(0.0, 0.0, 0.0, 1.0)


def test_the_interval_is_that_of_other_questions():
    """The standard error against the spread over drawn questions, dense weights and all."""
    a, b = flipped(0.15, RNG), flipped(0.25, RNG)
    found = stability_difference(DENSE, [a], [b])
    rng, drawn = np.random.default_rng(1), []
    for _ in range(400):
        picks = {task: rng.integers(0, n, n) for task, n in SIZES.items()}
        again = [
            {
                task: answers(
                    task, one.correct[picks[task]], np.stack(DENSE[task].nll or ())[picks[task]]
                )
                for task, one in model.items()
            }
            for model in (DENSE, a, b)
        ]
        drawn.append(stability_difference(again[0], [again[1]], [again[2]]).value)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)


def test_what_is_common_to_both_is_in_neither_s_favour():
    """A difference far below the noise of each model alone is found, and none is not."""
    common = flipped(0.3, RNG)
    better = {task: one for task, one in common.items()}
    marks = common["piqa"].correct.copy()
    wrong = np.flatnonzero(marks != DENSE["piqa"].correct)[:12]
    marks[wrong] = DENSE["piqa"].correct[wrong]
    better["piqa"] = answers("piqa", marks)
    found = stability_difference(DENSE, [better], [common])
    errors = [stability(DENSE["piqa"], one["piqa"]).stderr or 0 for one in (better, common)]
    assert found.value * 3 < 1.96 * math.hypot(*errors)  # piqa is a third: not told apart unpaired
    assert found.p is not None and found.p < 0.01 and found.low > 0
    same = [flipped(0.02, np.random.default_rng(seed), common) for seed in range(2)]
    p = stability_difference(DENSE, same[:1], same[1:]).p
    assert p is not None and p > 0.05


def test_seeds_that_differ_prove_less():
    rng = np.random.default_rng(3)
    alike = [flipped(0.1, rng), flipped(0.1, rng), flipped(0.1, rng)]
    apart = [flipped(share, rng) for share in (0.02, 0.1, 0.35)]
    other = [flipped(0.3, rng)]
    sure, unsure = (stability_difference(DENSE, one, other) for one in (alike, apart))
    assert sure.value == pytest.approx(np.mean(list(map(macro, alike))) - macro(other[0]))
    assert unsure.high - unsure.low > 3 * (sure.high - sure.low)
    assert sure.p is not None and unsure.p is not None and sure.p < 0.001 < 0.05 < unsure.p


def test_perplexities_are_paired_by_window():
    hard = RNG.normal(3.5, 0.5, 40)  # common to both
    first, second = hard + 0.05 + RNG.normal(0, 0.01, 40), hard
    found = perplexity_ratio([first], [second])
    assert found.value == pytest.approx(math.exp((first - second).mean()))
    assert found.p is not None and found.p < 1e-6 and 1.03 < found.low < found.high < 1.08
    alone = perplexity_ratio([first], [RNG.permutation(second)])  # not their windows
    assert alone.p is not None and alone.p > 0.05
    assert perplexity_ratio([first[:1]], [second[:1]]).p is None
    with pytest.raises(ConfigError, match="different numbers of windows"):
        perplexity_ratio([first], [second[1:]])


def test_models_stand_beside_the_best():
    values = {"a": 3.0, "b": 1.0, "c": 2.0}
    p = {"a": 0.01, "c": 0.04}
    found = against_best(
        values, lambda one, best: Paired(values[one] - values[best], 0, 1, p[one]), lowest=True
    )
    assert found.best == "b" and list(found.values) == ["b", "c", "a"]
    assert found.p_holm == {"c": 0.04, "a": 0.02} and found.differences["a"].value == 2.0
    assert found.apart("a") and not found.apart("a", 0.02) and not found.apart("b")


def test_without_options_there_is_nothing_to_pair():
    bare = {"gsm8k": answers("gsm8k", np.ones(4))}
    with pytest.raises(ConfigError, match="no task has options"):
        stability_difference(bare, [bare], [bare])
