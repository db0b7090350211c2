from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamline.errors import ConfigError
from streamline.results.answers import Answers, align
from streamline.results.stability import (
    agreement,
    grouped,
    macro,
    option_std,
    question_weights,
    stability,
)

# Counts published for Llama2-7B with nine layers dropped: both right, lost, gained, both wrong,
# and in percent: accuracy before, after, agreement.
PUBLISHED = {
    "C3": ((543, 257, 210, 815), (43.8, 41.3, 74.4)),
    "CHID": ((269, 563, 177, 993), (41.6, 22.3, 63.0)),
    "race-middle": ((380, 95, 129, 832), (33.1, 35.4, 84.4)),
    "race-high": ((938, 305, 353, 1902), (35.5, 36.9, 81.2)),
}


def answers(correct, nll=None, task="t", hashes=None, ids=None, metric="acc"):
    n = len(correct)
    return Answers(
        task=task,
        ids=tuple(ids or map(str, range(n))),
        hashes=tuple(hashes or [f"h{i}" for i in range(n)]),
        correct=np.asarray(correct, dtype=bool),
        nll=None if nll is None else tuple(np.asarray(row, dtype=float) for row in nll),
        nll_name=None if nll is None else "full prompt",
        metric=metric,
    )


def from_counts(counts, nll_row=(2.0, 2.5)):
    both_right, lost, gained, both_wrong = counts
    before = [True] * (both_right + lost) + [False] * (gained + both_wrong)
    after = [True] * both_right + [False] * lost + [True] * gained + [False] * both_wrong
    return answers(before, [nll_row] * len(before)), answers(after)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_with_equal_std_give_the_published_shares(name):
    counts, (dense_accuracy, pruned_accuracy, share) = PUBLISHED[name]
    result = stability(*from_counts(counts))
    assert round(100 * result.value, 1) == share
    assert round(100 * result.agreement, 1) == share
    assert tuple(result.counts().values()) == counts
    assert round(100 * result.accuracy_dense, 1) == dense_accuracy
    assert round(100 * result.accuracy_pruned, 1) == pruned_accuracy
    assert result.n == sum(counts)


def test_value_by_hand():
    # Sample stds sqrt(2)/2, sqrt(2), 0; weights e^std; questions 0 and 2 are stable.
    dense = answers([True, True, False], [[1, 2], [1, 3], [4, 4]])
    pruned = answers([True, False, False])
    a, b = np.exp(np.sqrt(0.5)), np.exp(np.sqrt(2.0))
    result = stability(dense, pruned)
    assert result.value == pytest.approx((a + 1) / (a + b + 1), abs=1e-15)
    assert result.agreement == pytest.approx(2 / 3)
    a, b = np.exp(0.5), np.exp(1.0)
    assert stability(dense, pruned, ddof=0).value == pytest.approx((a + 1) / (a + b + 1))


def test_release_mode_adds_the_first_weights_of_the_file():
    dense = answers([True, True, False], [[1, 2], [1, 3], [4, 4]])
    pruned = answers([False, True, False])
    a, b = np.exp(0.5), np.exp(1.0)
    assert stability(dense, pruned, ddof=0).value == pytest.approx((b + 1) / (a + b + 1))
    released = stability(dense, pruned, compat="release")
    assert released.value == pytest.approx((a + b) / (a + b + 1))
    assert (released.ddof, released.compat, released.stderr) == (0, "release", None)
    with pytest.raises(ConfigError, match="uses ddof 0 for the std, and 1 was given"):
        stability(dense, pruned, ddof=1, compat="release")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 20)), min_size=2), st.data())
def test_the_order_of_the_questions_does_not_matter(rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    before = answers([row[0] for row in rows], [[0.0, row[2]] for row in rows])
    after = answers([row[1] for row in rows])
    rows = [rows[place] for place in order]
    ids = [str(place) for place in order]
    hashes = [f"h{place}" for place in order]
    shuffled = answers([r[0] for r in rows], [[0.0, r[2]] for r in rows], hashes=hashes, ids=ids)
    first = stability(before, after)
    again = stability(shuffled, after)
    assert again.value == pytest.approx(first.value, abs=1e-12)
    assert again.counts() == first.counts()
    assert 0.0 <= first.value <= 1.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e4)), min_size=1))
def test_identical_models_are_fully_stable(rows):
    same = answers([row[0] for row in rows], [[0.0, row[1]] for row in rows])
    result = stability(same, same)
    assert result.value == 1.0
    assert result.stderr in (None, 0.0)


def test_huge_stds_do_not_overflow():
    dense = answers([True, True, False], [[0.0, 2e4], [0.0, 2e4], [0.0, 0.0]])
    pruned = answers([True, False, False])
    assert stability(dense, pruned).value == pytest.approx(0.5)
    assert question_weights(np.array([1e4, 1e4, -1e4])).tolist() == [0.5, 0.5, 0.0]


def test_stderr_with_equal_weights_is_the_usual_one_and_matches_a_bootstrap():
    counts = (60, 20, 10, 30)
    result = stability(*from_counts(counts))
    assert result.stderr == pytest.approx(np.sqrt(0.75 * 0.25 / 119))
    rng = np.random.default_rng(0)
    std = rng.gamma(2.0, 0.5, size=400)
    stable = rng.random(400) < 0.7
    dense = answers([True] * 400, [[0.0, value] for value in std])
    measured = stability(dense, answers(stable)).stderr
    weights = np.exp(option_std(dense.nll))
    draws = rng.integers(0, 400, size=(2000, 400))
    values = (weights * stable)[draws].sum(1) / weights[draws].sum(1)
    assert measured == pytest.approx(values.std(), rel=0.15)


def test_a_task_without_options_has_agreement_but_no_stability():
    result = stability(answers([True, False]), answers([True, True]))
    assert (result.value, result.stderr, result.agreement) == (None, None, 0.5)
    assert agreement(answers([True, False]), answers([True, True])) == 0.5


def test_different_questions_are_refused_with_the_difference():
    dense = answers([True] * 3, ids=["0", "1", "2"])
    with pytest.raises(ConfigError, match=r"1 question \(2\) only in the first"):
        stability(dense, answers([True] * 2))
    with pytest.raises(ConfigError, match=r"1 question \(9\) only in the second"):
        stability(dense, answers([True] * 4, ids=["0", "1", "2", "9"]))
    with pytest.raises(ConfigError, match=r"1 question \(1\) with another doc_hash"):
        stability(dense, answers([True] * 3, hashes=["h0", "other", "h2"]))
    with pytest.raises(ConfigError, match="no questions"):
        stability(dense, answers([]))


def test_renumbered_questions_are_paired_by_hash():
    dense = answers([True, False, True], hashes=["a", "b", "b"])
    pruned = answers([False, True, True], hashes=["b", "a", "b"])
    assert align(dense, pruned).correct.tolist() == [True, False, True]


def test_unusable_inputs_are_refused():
    one = answers([True, True])
    with pytest.raises(ConfigError, match="fewer than two options"):
        stability(answers([True, True], [[1.0], [1.0, 2.0]]), one)
    with pytest.raises(ConfigError, match="not finite"):
        stability(answers([True, True], [[1.0, np.nan], [1.0, 2.0]]), one)
    with pytest.raises(ConfigError, match="ddof is 2"):
        stability(answers([True, True], [[1.0, 2.0]] * 2), one, ddof=2)
    with pytest.raises(ConfigError, match="compat is 'old'"):
        stability(one, one, compat="old")
    with pytest.raises(ConfigError, match="scored by acc, the pruned one by acc_norm"):
        stability(one, answers([True, True], metric="acc_norm"))


def test_subjects_are_averaged_without_weights():
    small = stability(answers([True], [[0, 1]], "mmlu_anatomy"), answers([False]))
    big = stability(answers([True] * 9, [[0, 1]] * 9, "mmlu_virology"), answers([True] * 9))
    other = stability(answers([True], [[0, 1]], "piqa"), answers([True]))
    group, piqa = grouped([small, big, other])
    assert (group.task, group.subjects, group.value, group.agreement, group.n) == (
        "mmlu",
        2,
        0.5,
        0.5,
        10,
    )
    assert piqa is other


def test_subjects_under_different_metrics_stay_by_themselves():
    one = stability(answers([True], [[0, 1]], "mmlu_anatomy"), answers([True]))
    normed = answers([True], [[0, 1]], "mmlu_virology", metric="acc_norm")
    two = stability(normed, normed)
    assert [result.task for result in grouped([one, two])] == ["mmlu_anatomy", "mmlu_virology"]


def test_the_std_of_each_kind_is_that_of_its_questions():
    before, after = [True, True, False, False, True], [True, False, False, True, True]
    nll = [(1.0, 2.0), (1.0, 1.5), (3.0, 5.0), (1.0, 1.0), (1.0, 4.0)]
    result = stability(answers(before, nll), answers(after))
    std = {row: float(np.std(row, ddof=1)) for row in nll}
    wanted = {
        "both_right": (std[nll[0]] + std[nll[4]]) / 2,
        "lost": std[nll[1]],
        "gained": 0.0,
        "both_wrong": std[nll[2]],
    }
    assert result.option_std == pytest.approx(wanted)
    assert result.to_fields()["option_std"] == result.option_std
    whole = stability(answers([True, True], nll[:2]), answers([True, True]))
    assert whole.option_std["lost"] is None
    both = macro([result, whole], "two")
    n, mean = 4, (2 * wanted["both_right"] + std[nll[0]] + std[nll[1]]) / 4
    assert both.both_right == n and both.option_std["both_right"] == pytest.approx(mean)
    assert both.option_std["lost"] == pytest.approx(wanted["lost"])
    assert stability(answers(before), answers(after)).option_std == {}
