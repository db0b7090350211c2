"""The row of span scores; a planted difference is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamline.benchmarks.speed import spans
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.engine.decoder import Decoder
from streamline.testing.models import tiny_model


def test_spans_row(options: Options, tiny: Callable[..., Any]) -> None:
    tiny(spans)
    outcome = spans.run(options)
    assert outcome.races[0].facts["max_difference"] < 1e-5
    assert outcome.facts["ratio_against_cosine_runs_alone"] > 0 and outcome.memory is None


def test_planted_span_scores_are_found(toy_tokens: Callable[..., Any]) -> None:
    model = tiny_model("llama").requires_grad_(False)
    tokens = toy_tokens(None, 2, 32)
    ours = spans.ours(Decoder(model), tokens, [2])
    theirs = spans.theirs(model, tokens, [2])
    spans.same({"ours": ours, "theirs": theirs})
    scores = ours["cosine"][2]
    worst = scores.index(min(scores[:-1]))
    planted = ours | {"cosine": {2: [s + 2e-4 * (i == worst) for i, s in enumerate(scores)]}}
    with pytest.raises(Disagreement, match="cosine scores of 2 layers differ"):
        spans.same({"ours": planted, "theirs": theirs})
    *inner, last = theirs["cosine"][2]
    other = theirs | {"cosine": {2: [*inner, -2.0 if last == max(*inner, last) else 2.0]}}
    with pytest.raises(Disagreement, match="chosen spans differ"):
        spans.same({"ours": ours, "theirs": other})
