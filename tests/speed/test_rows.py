"""Every row on a tiny model; in each a planted difference is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamline.baselines.sleb import SLEB
from streamline.benchmarks.speed import dense, generation, mmlu, sleb, spans, students, variants
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation import harness
from streamline.evaluation.generation.prompts import Prompt
from streamline.plan import Span
from streamline.testing.models import tiny_model

Tiny = Callable[[int], Any]


def test_dense_row(options: Options, tiny: Tiny) -> None:
    tiny(2)
    outcome = dense.run(options)
    assert outcome.work.endswith("dense, 10 questions of each task")
    assert [race.facts["right"].keys() for race in outcome.races] == [{"a", "b"}] * 2
    assert "first 10 questions of each task instead of 100" in outcome.notes[-1]


def test_variants_row(options: Options, tiny: Tiny) -> None:
    tiny(6)
    outcome = variants.run(options)
    assert outcome.races[0].facts["n_models"] == 13
    assert 0 < outcome.races[0].facts["max_difference"] < 1e-3


def test_mmlu_row_asks_behind_examples(
    options: Options, tiny: Tiny, toy_parts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(2)
    asked: list[Any] = []

    def parts(names: Any, tokenizer: Any, model: Any, limit: int, shots: int) -> Any:
        asked.append((names, limit, shots))
        return toy_parts(names, tokenizer, model, limit)

    monkeypatch.setattr("streamline.benchmarks.speed.questions.task_parts", parts)
    assert mmlu.run(options).ratio() is not None
    assert asked == [(["mmlu_abstract_algebra"], 12, 5)]


def test_spans_row(options: Options, tiny: Tiny) -> None:
    tiny(6)
    outcome = spans.run(options)
    assert outcome.races[0].facts["max_difference"] < 1e-5


def test_planted_span_scores_are_found() -> None:
    model = tiny_model("llama").requires_grad_(False)
    tokens = torch.randint(0, 250, (2, 32), generator=torch.Generator().manual_seed(3))
    ours, theirs = spans.ours(Decoder(model), tokens, [2]), spans.theirs(model, tokens, [2])
    spans.same(ours, theirs)
    scores = ours["cosine"][2]
    worst = scores.index(min(scores[:-1]))
    planted = ours | {"cosine": {2: [s + 2e-4 * (i == worst) for i, s in enumerate(scores)]}}
    with pytest.raises(Disagreement, match="cosine scores of 2 layers differ"):
        spans.same(planted, theirs)
    *inner, last = theirs["cosine"][2]
    other = theirs | {"cosine": {2: [*inner, -2.0 if last == max(*inner, last) else 2.0]}}
    with pytest.raises(Disagreement, match="chosen spans differ"):
        spans.same(ours, other)


def test_students_row(options: Options, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(6)
    monkeypatch.setattr(students, "TOKENS", {"quick": (192, 48)})
    monkeypatch.setattr(students, "VALIDATION_TOKENS", 96)
    monkeypatch.setattr(students, "BATCH_TOKENS", 96)
    monkeypatch.setattr(students, "SPANS", (Span(1, 3), Span(2, 5)))
    facts = students.run(options).races[0].facts
    assert facts["steps"] == 2 and len(facts["validation"]) == 4
    assert facts["max_relative_difference"] < 1e-4
    assert all(before != after for before, after in facts["validation"])


def test_planted_student_loss_is_found() -> None:
    losses = [[2.0, 1.9, 1.8], [3.0, 2.9, 2.8]]
    students.same(losses, losses)
    with pytest.raises(Disagreement, match="losses of student 1 differ"):
        students.same(losses, [losses[0], [3.0, 2.9, 2.801]])


def test_sleb_row(options: Options, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(6)
    monkeypatch.setattr(sleb, "SPARSITY", {"quick": 0.4})
    outcome = sleb.run(options)
    assert len(outcome.races[0].facts["order"]) >= 2 and len(model.model.layers) == 6
    search = SLEB.search
    monkeypatch.setattr(SLEB, "search", lambda *given: search(*given)[::-1])
    with pytest.raises(Disagreement, match="layers in the order of their removal differ"):
        sleb.run(options)


def test_planted_sleb_loss_is_found() -> None:
    sleb.same(([3, 1], [2.0, 2.5]), ([3, 1], [2.0, 2.5]))
    with pytest.raises(Disagreement, match="losses differ"):
        sleb.same(([3, 1], [2.0, 2.5]), ([3, 1], [2.0, 2.501]))


def test_the_naive_search_restores_the_model() -> None:
    model = tiny_model("llama", n_layers=4)
    with pytest.raises(IndexError):
        sleb.greedy(model, torch.full((1, 4), 10_000), 1)
    assert len(model.model.layers) == 4


def test_generation_row(options: Options, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(6)
    monkeypatch.setattr(generation, "QUESTIONS", {"quick": 4})
    monkeypatch.setattr(generation, "NEW_TOKENS", {"quick": 4})
    facts = generation.run(options).races[0].facts
    assert facts["texts"] == 10 and 10 <= facts["new_tokens"] <= 40
    monkeypatch.setattr(harness, "text_of", lambda *_: "planted")
    with pytest.raises(Disagreement, match=r"texts of prompt 0 differ \(ours 'planted'"):
        generation.run(dataclasses.replace(options, repeats=1))


def test_only_a_tie_may_part_texts(tokenizer: Any) -> None:
    model = tiny_model("llama", n_layers=1)
    prompt = Prompt((1, 2, 3), (), 2)
    (tokens,) = generation.side_by_side([dense_path(Decoder(model))], [prompt], tokenizer)
    text = tokenizer.decode(tokens[0])
    given = ([prompt], [model], tokenizer)
    found = generation.same_texts([[text]], [tokens], [[text]], *given)
    assert found == {"texts": 1, "new_tokens": 2, "ties": 0}
    with pytest.raises(Disagreement, match="apart where they part"):
        generation.same_texts([[text]], [tokens], [["x" + text]], *given)
