"""The row that works the embedded benchmark in two ways, on the tiny model."""

from __future__ import annotations

import pytest

from streamline.benchmarks.speed import common, embedded
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.run.deciding.decide import decided
from streamline.sources.models import load_model


def test_both_ways_end_equal(place, config, tmp_path, monkeypatch):
    methods = "last-layers,llm-streamline-ffn,streamline-v1-multiple-mlp"
    small = decided(config(tmp_path / "run", methods=methods, limit=8)).config
    name = str(place / "model")
    monkeypatch.setattr(common, "loaded", lambda name: load_model(name))
    monkeypatch.setattr(embedded, "settings", lambda options, out: small)
    outcome = embedded.run(Options(size="quick", model=name))
    (race,) = outcome.races
    assert race.facts["cells"] == 4 and race.facts["max_relative_difference"] < 1e-4
    assert "4 cells, 8 questions" in outcome.work


def test_a_planted_difference_is_found():
    found = {"dense": ({"piqa": 0.5}, 20.0), "shortgpt 0.1": ({"piqa": 0.4}, 30.0)}
    embedded.same(found, found)
    for other in (({"piqa": 0.6}, 30.0), ({"piqa": 0.4}, 30.1), ({"arc_easy": 0.4}, 30.0)):
        with pytest.raises(Disagreement):
            embedded.same(found, found | {"shortgpt 0.1": other})


def test_a_fraction_of_the_suite(tmp_path):
    sizes = [Options(size="default"), Options(size="full")]
    tenth, whole = (embedded.settings(options, tmp_path) for options in sizes)
    assert (tenth.limit, whole.limit) == (10, 100)
    assert (tenth.training.n_tokens, whole.training.n_tokens) == (5_000, 50_000)
    assert tenth.methods == whole.methods and tenth.sparsities == whole.sparsities
