"""Our scorer against lm-eval's own model: the same answers, and a planted difference is found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamline.benchmarks.speed import peers, questions, scoring_row
from streamline.benchmarks.speed.common import Disagreement, Outcome
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring.score import Answers
from streamline.plan import Span
from streamline.testing.models import tiny_model, tiny_tokenizer


def altered(answers: Answers, by: float) -> Answers:
    sums = answers.loglikelihood.copy()
    sums[-1] += by
    return dataclasses.replace(answers, loglikelihood=sums)


def test_our_answers_are_lm_evals_for_every_variant(asked: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    decoder = Decoder(model)
    paths = [scoring_row.replaced(decoder, Span(3, 5), kind) for kind in scoring_row.KINDS]
    parts = [questions.written("w", asked(8)[i : i + 4], tokenizer) for i in (0, 4)]
    outcome = Outcome(name="x", work="w", against="a", target=None)
    scoring_row.race_scoring(outcome, [dense_path(decoder), *paths], tokenizer, parts)
    assert len(outcome.races) == 2 and outcome.facts["max_difference"] < 1e-3
    assert outcome.races[0].facts["n_models"] == 5
    assert outcome.facts["accuracy"]["w"]["n"] == 8
    first = outcome.facts["sharing"][0]
    assert first["layer_runs"] < first["layer_runs_unshared"]
    assert first["tokens"] < first["tokens_unshared"]


@pytest.mark.parametrize("amount", [2e-3, math.nan])
def test_a_planted_log_probability_is_found(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, amount: float
) -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    part = questions.written("w", asked(3), tokenizer)
    honest = peers.LmEval.answer

    def planted(self: Any, some: Any) -> list[Answers]:
        return [altered(answers, amount) for answers in honest(self, some)]

    monkeypatch.setattr(peers.LmEval, "answer", planted)
    outcome = Outcome(name="x", work="w", against="a", target=None)
    with pytest.raises(Disagreement, match="summed log-probabilities of model 0 differ"):
        scoring_row.race_scoring(outcome, [dense_path(Decoder(model))], tokenizer, [part])
    assert not outcome.races


def test_a_planted_grade_is_found(asked: Callable[..., Any]) -> None:
    part = questions.written("w", asked(2), tiny_tokenizer())
    counts = np.ones(6, dtype=np.int64)
    sums = np.array([-1.0, -1.0005, -3, -1, -1, -1])
    ours = Answers(sums, counts > 0, counts)
    theirs = Answers(np.array([-1.0, -0.9996, -3, -1, -1, -1]), counts > 0, counts)
    with pytest.raises(Disagreement, match="grades of model 0 on w differ"):
        peers.same_answers(part, [ours], [theirs])
    with pytest.raises(Disagreement, match="numbers of models differ"):
        peers.same_answers(part, [ours], [])


def test_only_large_sums_of_pruned_models_may_differ_more() -> None:
    part = questions.written("w", [("a", [" b", " c"], 0)], tiny_tokenizer())
    counts = np.ones(2, dtype=np.int64)
    theirs = Answers(np.array([-1000.0, -1500.0]), counts > 0, counts)
    ours = altered(theirs, 4e-3)
    found = peers.same_answers(part, [theirs, ours], [theirs, theirs])
    assert found["max_difference"] == pytest.approx(4e-3) and found["sum_there"] == -1500
    with pytest.raises(Disagreement, match="of model 0 differ"):
        peers.same_answers(part, [ours], [theirs])
    with pytest.raises(Disagreement, match="of model 1 differ by 0.00107"):
        peers.same_answers(part, [theirs, altered(theirs, 8e-3)], [theirs, theirs])


def test_other_token_ids_are_found(asked: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    part = questions.written("w", asked(2), tokenizer)
    wrong = dataclasses.replace(part, requests=part.requests[::-1])
    with pytest.raises(Disagreement, match="token ids differ"):
        peers.answer([dense_path(Decoder(model))], wrong, tokenizer)


def test_a_batch_size_is_tried_on_whole_batches(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = questions.written("w", asked(12), tiny_tokenizer())
    sizes: list[int] = []
    honest = peers.LmEval.answer

    def counted(self: Any, some: Any) -> list[Answers]:
        sizes.append(len({r.inputs for r in some.requests}))
        assert len(some.requests) % 3 == 0  # whole questions
        return honest(self, some)

    monkeypatch.setattr(peers.LmEval, "answer", counted)
    monkeypatch.setattr(peers, "_TRIAL_TOKENS", 100)
    model = tiny_model("llama", n_layers=2).requires_grad_(False)
    size, costs = peers.best_batch_size(model, tiny_tokenizer(), part, sizes=(4, 8))
    assert set(costs) == {"4", "8"} and costs[str(size)] == min(costs.values())
    assert sizes[1] >= 4 and sizes[2] >= 8
