"""Errors of what a record averages, ties, and the sentence that a report opens with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamline.report.findings import uncertainty
from streamline.report.findings.answer import answer, budget, question
from streamline.report.findings.rows import rows
from streamline.report.findings.uncertainty import Estimate, over_seeds
from streamline.results.record import Record


def record(method, right, dense, sparsity=0.25, **changes):
    """One task, its questions right or wrong for a model and for the dense one."""
    right, dense = np.asarray(right, bool), np.asarray(dense, bool)
    n, value = len(right), float(right.mean())
    counts = {
        "both_right": int((right & dense).sum()),
        "lost": int((~right & dense).sum()),
        "gained": int((right & ~dense).sum()),
        "both_wrong": int((~right & ~dense).sum()),
    }
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    task = {"metric": "acc", "value": value, "stderr": stderr, "n": n, "counts": counts}
    summary = {"accuracy": value, "relative_accuracy": value / float(dense.mean())}
    cell = {"model": "m", "method": method, "sparsity": sparsity, "status": "ok"}
    return Record.build(cell | {"tasks": {"t": task}, "summary": summary} | changes)


def test_the_error_of_the_ratio_is_that_of_paired_questions():
    rng = np.random.default_rng(0)
    dense = rng.random(400) < 0.6
    own = np.where(rng.random(400) < 0.15, ~dense, dense)
    base, pruned = record("dense", dense, dense, 0.0), record("a", own, dense)
    found = uncertainty.relative(pruned, base)
    drawn = rng.integers(400, size=(4000, 400))
    ratios = own[drawn].mean(1) / dense[drawn].mean(1)
    assert found.value == pytest.approx(own.mean() / dense.mean())
    assert found.stderr == pytest.approx(ratios.std(), rel=0.05)
    without = pruned.tasks["t"].model_copy(update={"counts": None})
    unpaired = uncertainty.relative(pruned.model_copy(update={"tasks": {"t": without}}), base)
    assert unpaired.stderr > 1.5 * found.stderr
    assert uncertainty.relative(base, base) == Estimate(1.0)


def test_seeds_add_their_spread_to_the_questions_error():
    assert over_seeds([Estimate(0.5, 0.03)]) == Estimate(0.5, 0.03)
    both = over_seeds([Estimate(0.4, 0.03), Estimate(0.6, 0.03)])
    assert both.value == pytest.approx(0.5)
    assert both.stderr == pytest.approx(math.sqrt(0.03**2 + 0.02 / 2))
    assert over_seeds([Estimate(0.4), Estimate(0.6)]).stderr is None


def test_a_perplexity_s_error_is_that_of_the_mean_loss():
    facts = {"heldout": {"value": 20.0, "mean_nll_stderr": 0.05}}
    summary = {"perplexity": {"heldout": 20.0}, "perplexity_facts": facts}
    one = record("a", [1, 0], [1, 0], summary=summary)
    assert uncertainty.perplexity(one, "heldout") == Estimate(20.0, 1.0)
    assert uncertainty.perplexity(one, "other") is None


def sentence(*cells):
    return answer(rows(list(cells), {})).replace("\u00a0", " ")


def test_the_answer_names_the_best_its_error_and_its_ties():
    dense = np.arange(2000) % 10 < 8
    better, worse = np.arange(2000) % 10 < 7, np.arange(2000) % 10 < 4
    base = record("dense", dense, dense, 0.0)
    best, last = record("a", better, dense), record("c", worse, dense)
    assert sentence(base, best, last) == (
        "At 25 %, a keeps 87.5 ± 0.8 % of the dense accuracy, more than the other one beyond "
        "chance."
    )
    tied = sentence(base, best, record("b", better, dense), last)
    assert tied.endswith("of the dense accuracy, and b cannot be told from it.")
    assert sentence(base) == "No average accuracy of a pruned model was measured."


def without_errors(one):
    task = one.tasks["t"].model_copy(update={"stderr": None})
    return one.model_copy(update={"tasks": {"t": task}})


def test_nothing_is_beyond_chance_where_no_error_is_known():
    base, best, last = (
        without_errors(record(name, np.arange(100) < right, np.arange(100) < 80, sparsity))
        for name, right, sparsity in (("dense", 80, 0.0), ("a", 61, 0.25), ("c", 60, 0.25))
    )
    found = sentence(base, best, last)
    assert found == "At 25 %, a keeps 76.2 % of the dense accuracy, more than the other one."


def test_a_ratio_is_not_put_beside_an_accuracy():
    dense = np.arange(2000) % 10 < 8
    best, last = (record(name, np.arange(2000) % 10 < n, dense) for name, n in (("a", 7), ("b", 6)))
    alone = best.model_copy(
        update={"summary": best.summary.model_copy(update={"relative_accuracy": None})}
    )
    found = sentence(alone, last)
    assert found.startswith("At 25 %, a keeps 70.0 ± 1.0 % average accuracy, more than")


def test_the_question_and_what_the_numbers_rest_on():
    dense = [True, False] * 10
    cells = [record("dense", dense, dense, 0.0), record("a", dense, dense, 0.1),
             record("b", dense, dense, cost={"train_tokens": 1000})]  # fmt: skip
    asked = question(rows(cells, {})).replace("\u00a0", " ")
    assert asked == "Which method removes 10 % and 25 % of m best?"
    settings = [{"calibration": {"n_samples": 16, "length": 512}}]
    assert budget(cells, settings) == (
        "2 methods; 1 task, 20 questions; calibrated on 8,192 tokens; trained on 1,000 tokens "
        "where a method trains."
    )
