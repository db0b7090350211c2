"""Our scorer against lm-eval's own model: the same answers, and a planted difference is found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamline.benchmarks.speed import lm_eval_peer, questions, scoring
from streamline.benchmarks.speed.common import Disagreement, Options, Outcome
from streamline.benchmarks.speed.questions import Questions
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError
from streamline.evaluation.scoring.score import Likelihoods
from streamline.testing.models import tiny_model, tiny_tokenizer

Parts = Callable[..., list[Any]]


def altered(answers: Likelihoods, by: float) -> Likelihoods:
    sums = answers.loglikelihood.copy()
    sums[-1] += by
    return dataclasses.replace(answers, loglikelihood=sums)


def made_up(sums: list[float]) -> Likelihoods:
    return Likelihoods(np.array(sums), np.ones(len(sums), bool), np.ones(len(sums), dtype=np.int64))


@pytest.fixture
def asked(toy_parts: Parts) -> Questions:
    """Two questions with three options, of one task."""
    return Questions((toy_parts([], None, None, 2)[0],))


def test_slices_share_no_question(toy_parts: Parts) -> None:
    parts = toy_parts([], None, None, 6)
    first, second = questions.slices(parts, 2, 2)
    ids = [{(r.task, r.doc_id) for r in cut.requests} for cut in (first, second)]
    assert ids[0] == {(t, d) for t in ("a", "b") for d in (0, 1)}
    assert not ids[0] & ids[1] and len(ids[1]) == 4
    with pytest.raises(ConfigError, match="a has 6 questions, too few for 4 times 2"):
        questions.slices(parts, 2, 4)


@pytest.mark.parametrize("amount", [2e-3, math.nan])
def test_a_planted_log_probability_is_found(
    options: Options, tiny: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch, amount: float
) -> None:
    path = dense_path(Decoder(tiny(2)))
    honest = lm_eval_peer.LmEval.answer

    def planted(self: Any, some: Any) -> list[Likelihoods]:
        return [altered(answers, amount) for answers in honest(self, some)]

    monkeypatch.setattr(lm_eval_peer.LmEval, "answer", planted)
    outcome = Outcome(name="x", work="w", against="a")
    with pytest.raises(Disagreement, match="summed log-probabilities of model 0 differ"):
        scoring.race_scoring(options, outcome, [path], ["x"], {"quick": 2, "full": 2})
    assert not outcome.races


def test_a_planted_grade_is_found(asked: Questions) -> None:
    ours = made_up([-1.0, -1.0005, -3, -1, -1, -1])
    theirs = made_up([-1.0, -0.9996, -3, -1, -1, -1])
    with pytest.raises(Disagreement, match="grades of model 0 on a differ"):
        lm_eval_peer.same_answers(asked, [ours], [theirs])
    with pytest.raises(Disagreement, match="numbers of models differ"):
        lm_eval_peer.same_answers(asked, [ours], [])


def test_only_large_sums_of_pruned_models_may_differ_more(asked: Questions) -> None:
    theirs = made_up([-1000.0, -1100, -1200, -1300, -1400, -1500])
    ours = altered(theirs, 4e-3)
    found = lm_eval_peer.same_answers(asked, [theirs, ours], [theirs, theirs])
    assert found["max_difference"] == pytest.approx(4e-3)
    with pytest.raises(Disagreement, match="of model 0 differ"):
        lm_eval_peer.same_answers(asked, [ours], [theirs])
    with pytest.raises(Disagreement, match="of model 1 differ by 0.00107"):
        lm_eval_peer.same_answers(asked, [theirs, altered(theirs, 8e-3)], [theirs, theirs])


def test_other_token_ids_are_found(asked: Questions) -> None:
    (part,) = asked.parts
    wrong = Questions((dataclasses.replace(part, requests=part.requests[::-1]),))
    path = dense_path(Decoder(tiny_model("llama", n_layers=2)))
    with pytest.raises(Disagreement, match="token ids differ"):
        scoring.answer([path], wrong, tiny_tokenizer())


def test_batch_sizes_are_tried_on_the_same_whole_questions(
    toy_parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[Any, ...]] = []
    honest = lm_eval_peer.LmEval.answer

    def counted(self: Any, some: Questions) -> list[Likelihoods]:
        tried.append(some.requests)
        return honest(self, some)

    monkeypatch.setattr(lm_eval_peer.LmEval, "answer", counted)
    monkeypatch.setattr(lm_eval_peer, "TRIAL_TOKENS", 400)
    model = tiny_model("llama", n_layers=2).requires_grad_(False)
    every = Questions(tuple(toy_parts([], None, None, 12)))
    size = lm_eval_peer.best_batch_size(model, tiny_tokenizer(), every, sizes=(4, 8))
    assert size in (4, 8) and tried[1] == tried[2]
    assert len(tried[0]) < len(tried[1]) < len(every.requests) and len(tried[1]) % 6 == 0
