"""The record of an evaluated checkpoint says what was removed of which model."""

from __future__ import annotations

import json

from streamline.results.record_file import load
from streamline.run.deciding.decide import decided
from streamline.run.pipeline import evaluate_model, prune_to_checkpoint
from streamline.run.planning.fitting import memory_plan


def test_a_checkpoint_says_what_was_removed_and_a_model_nothing(tmp_path, config, place):
    folder = tmp_path / "short"
    settings = config(folder, methods="shortgpt", efficiency="quick")
    prune_to_checkpoint(
        str(place / "model"),
        method="shortgpt",
        sparsity=0.3,
        out=folder,
        config=settings,
        verify=False,
    )
    asked = settings.model_copy(update={"methods": ("dense",)})
    record = evaluate_model(str(folder), out=tmp_path / "short.json", config=asked)
    dense = evaluate_model(str(place / "model"), out=tmp_path / "dense.json", config=asked)
    removed = json.loads((folder / "plan.json").read_text())["removed_layers"]
    assert record.plan.removed_layers == removed and removed
    assert record.plan.kept_layers == [i for i in range(6) if i not in removed]
    assert record.parameters.dense == dense.parameters.dense
    assert record.parameters.pruned < record.parameters.dense
    lost = 1 - record.parameters.pruned / record.parameters.dense
    assert record.parameters.removed_fraction == lost
    assert record.notes["checkpoint"]["method"] == "shortgpt"
    assert record.notes["checkpoint"]["model"] == str(place / "model")
    assert load(tmp_path / "short.json")[0].to_json() == record.to_json()
    assert dense.plan.removed_layers == [] and "checkpoint" not in dense.notes
    assert dense.parameters.removed_fraction == 0.0
    own, first = record.efficiency, dense.efficiency
    assert own.parameters == record.parameters.pruned and own.decode[0].tokens_per_second
    assert own.dense is None and own.dense_peak_memory_bytes is None, (
        "it is not its own dense model"
    )
    assert {speed.ratio for speed in own.prefill + own.decode} == {None}
    assert "the dense model was not there" in own.reason
    assert first.dense.parameters == first.parameters and first.decode[0].ratio.median == 1.0


def test_a_checkpoint_that_lists_its_layers_is_planned_as_its_dense_model_is(
    tmp_path, config, place
):
    folder, method = tmp_path / "ffn", "llm-streamline-ffn"
    settings = config(folder, methods=method)
    prune_to_checkpoint(
        str(place / "model"), method=method, sparsity=0.3, out=folder, config=settings, verify=False
    )
    asked = settings.model_copy(update={"methods": ("dense",), "memory": 2**28})
    record = evaluate_model(str(folder), out=tmp_path / "ffn.json", config=asked)
    assert record.status == "ok"

    def added(model: str) -> int:
        one = decided(asked.model_copy(update={"models": (model,)})).config
        (row,) = [row for row in memory_plan(one, model).rows if row.stage == "evaluate"]
        return row.added

    whole = added(str(place / "model"))
    assert 0.9 * whole < added(str(folder)) < 1.1 * whole
