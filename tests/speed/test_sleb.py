"""The row of greedy search; a planted difference is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamline.baselines._rounds import Round
from streamline.baselines.sleb import SLEB
from streamline.benchmarks.speed import published, sleb
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.testing.models import tiny_model


def test_sleb_row(
    options: Options, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny(sleb)
    monkeypatch.setattr(sleb, "SPARSITY", {"quick": 0.4})
    outcome = sleb.run(options)
    assert len(outcome.races[0].facts["order"]) >= 2 and len(model.model.layers) == 6
    assert outcome.facts["sharing"]["layer_runs"] < outcome.facts["sharing"]["layer_runs_unshared"]
    assert outcome.facts["ratio_of_sharing_layers"] > 1 and outcome.facts["head_in_layers"] > 0
    monkeypatch.setattr(
        SLEB, "search", lambda self, decoder, tokens, n: [Round(i, 1.0, 1, 1) for i in range(n)]
    )
    with pytest.raises(Disagreement, match="layers in the order of their removal differ"):
        sleb.run(options)


def test_planted_sleb_loss_is_found() -> None:
    sleb.same({"ours": ([3, 1], [2.0, 2.5]), "theirs": ([3, 1], [2.0, 2.5])})
    with pytest.raises(Disagreement, match="losses differ"):
        sleb.same({"ours": ([3, 1], [2.0, 2.5]), "theirs": ([3, 1], [2.0, 2.501])})


def test_naive_greedy_restores_the_model() -> None:
    model = tiny_model("llama", n_layers=4)
    with pytest.raises(IndexError):
        published.greedy(model, torch.full((1, 4), 10_000), 1)
    assert len(model.model.layers) == 4
