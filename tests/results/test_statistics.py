from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t

from streamline.errors import ConfigError
from streamline.results.statistics import (
    compact_letters,
    difference_interval,
    holm,
    mcnemar,
    noise_floor,
    seeds_test,
)


def marks(*counts):
    """Two models with (both right, only first, only second, both wrong) questions."""
    both, first, second, neither = counts
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def test_mcnemar_is_the_binomial_test_of_the_differing_questions():
    a, b = marks(50, 9, 2, 39)
    assert mcnemar(a, b) == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar(a, b) == mcnemar(b, a)
    assert mcnemar(a, a) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_covers_the_difference_and_is_seeded():
    a, b = marks(300, 80, 30, 90)
    low, high = difference_interval(a, b, np.random.default_rng(0))
    assert (low, high) == difference_interval(a, b, np.random.default_rng(0))
    assert low < 0.1 < high
    # The paired difference has the std of (first - second), not of two independent models.
    std = np.std(a.astype(float) - b.astype(float)) / math.sqrt(500)
    assert high - low == pytest.approx(2 * 1.96 * std, rel=0.1)
    assert difference_interval(a, a, np.random.default_rng(0)) == (0.0, 0.0)


def test_the_noise_floor_is_the_smallest_significant_difference():
    assert noise_floor(100) == 0.06  # 2 * 0.5^6 < 0.05 < 2 * 0.5^5
    assert noise_floor(5) == math.inf
    floor = noise_floor(100, 20)
    lead = round(100 * floor)
    a, b = marks(40, (20 + lead) // 2, (20 - lead) // 2, 40)
    assert mcnemar(a, b) < 0.05
    a, b = marks(40, (20 + lead) // 2 - 1, (20 - lead) // 2 + 1, 40)
    assert mcnemar(a, b) >= 0.05
    assert noise_floor(100, 5) == math.inf
    with pytest.raises(ConfigError, match="at least one question, got 0"):
        noise_floor(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.data())
def test_names_share_a_letter_exactly_if_they_are_not_told_apart(n, data):
    names = [f"m{i}" for i in range(n)]
    pairs = [frozenset(pair) for pair in itertools.combinations(names, 2)]
    apart = {pair for pair in pairs if data.draw(st.booleans())}
    letters = compact_letters(names, apart)
    assert all(letters.values())
    for pair in pairs:
        first, second = pair
        assert bool(set(letters[first]) & set(letters[second])) == (pair not in apart)


def test_letters_begin_with_the_best():
    apart = {frozenset(("a", "c"))}
    assert compact_letters(["a", "b", "c"], apart) == {"a": "a", "b": "ab", "c": "b"}


def drawn(rng, n, seeds, spread, level=0.6):
    """Answers of a method whose seeds differ in how good they are, on questions of all kinds."""
    easy = rng.normal(0, 0.15, n)
    return easy, lambda: np.stack(
        [rng.random(n) < np.clip(level + easy + rng.normal(0, spread), 0, 1) for _ in range(seeds)]
    )


def test_the_variance_over_questions_and_seeds_is_that_of_every_resample():
    """All ways to draw 3 of 3 questions and 2 of 2 seeds with replacement, against the formula."""
    first = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    second = np.array([[0, 0, 1]], dtype=bool)
    x = first - second.astype(float)  # [seeds, N]
    means = [
        x[np.ix_(seeds, questions)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for questions in itertools.product(range(3), repeat=3)
    ]
    rows, columns = x.mean(1) - x.mean(), x.mean(0) - x.mean()
    rest = x - x.mean() - rows[:, None] - columns[None]
    of_questions, of_seeds = (v.var(ddof=1) / len(v) for v in (x.mean(0), x.mean(1)))
    of_both = np.square(rest).mean() / rest.size
    assert np.var(means) == pytest.approx(of_questions * 2 / 3 + of_seeds / 2 + of_both)
    variance = of_questions + of_seeds
    freedom = variance**2 / (of_questions**2 / 2 + of_seeds**2)
    found = seeds_test(first, second)
    assert found.p == pytest.approx(2 * t.sf(abs(x.mean()) / math.sqrt(variance), freedom))
    assert found.floor == pytest.approx(t.isf(0.025, freedom) * math.sqrt(variance))
    assert (found.low, found.high) == pytest.approx(
        (x.mean() - found.floor, x.mean() + found.floor)
    )


@pytest.mark.parametrize("seeds", [2, 4])
def test_seeds_of_equal_methods_are_seldom_told_apart_and_the_first_seeds_alone_often(seeds):
    rng = np.random.default_rng(5)
    wrong = {"together": 0, "first": 0}
    for _ in range(300):
        _, draw = drawn(rng, 400, seeds, spread=0.06)
        first, second = draw(), draw()
        wrong["together"] += seeds_test(first, second).p < 0.05
        wrong["first"] += mcnemar(first[0], second[0]) < 0.05
    assert wrong["together"] <= 0.07 * 300
    assert wrong["first"] > 0.25 * 300


def test_seeds_that_agree_leave_the_questions_alone_and_a_real_difference_is_found():
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.7, rng.random(400) < 0.5
    alone, twice = seeds_test(a[None], b[None]), seeds_test(np.stack([a, a]), np.stack([b] * 3))
    assert alone == pytest.approx(twice)
    assert alone.p < 1e-6 and mcnemar(a, b) < 1e-6
    same = seeds_test(a[None], a[None])
    assert (same.p, same.low, same.high, same.floor) == (1.0, 0.0, 0.0, math.inf)
