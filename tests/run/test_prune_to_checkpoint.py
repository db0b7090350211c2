from __future__ import annotations

import json
from typing import Any

import pytest

from streamline.api import variants
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.progress import Silent
from streamline.results.samples import read_samples
from streamline.run.pipeline import evaluate_model, prune_to_checkpoint
from streamline.run.planning.estimate import plan_run
from streamline.run.planning.fitting import fitted, memory_plan


@pytest.mark.parametrize("recovery", ["none", "lora", "kd"])
def test_pruning_writes_a_checkpoint_that_evaluates(place, tmp_path, recovery, config):
    folder = tmp_path / "pruned"
    settings = config(folder, methods="llm-streamline-layer", recovery=recovery)
    facts = prune_to_checkpoint(
        str(place / "model"),
        method="llm-streamline-layer",
        sparsity=0.3,
        out=folder,
        config=settings,
        verify=False,
        progress=Silent(),
    )
    assert facts["cell"]["method"] == "llm-streamline-layer"
    assert {"lora", "kd"} & set(facts["training"]) == {recovery} - {"none"}
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    with pytest.raises(ConfigError, match="exists and is not empty"):
        prune_to_checkpoint("x", method="dense", sparsity=0.3, out=folder, config=settings)
    record = evaluate_model(str(folder), out=tmp_path / "record.json", config=settings)
    assert record.status == "ok"
    written = json.loads((tmp_path / "record.json").read_text())
    assert len(read_samples(tmp_path / "record.parquet")) == 16
    assert written["tasks"]["piqa"]["value"] == record.tasks["piqa"].value
    samples = read_samples(tmp_path / "record.parquet")
    evaluate_model(str(place / "model"), out=tmp_path / "record.json", config=settings)
    other = read_samples(tmp_path / "record.parquet")
    assert len(other) == 16 and not other["loglikelihood"].equals(samples["loglikelihood"])
    evaluate_model(str(folder), out=tmp_path / "record.json", config=settings)
    assert read_samples(tmp_path / "record.parquet").equals(samples)


def test_pruning_refuses_before_any_work_a_training_that_memory_does_not_hold(
    place, tmp_path, monkeypatch, config
):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a refused cell must not load a model")

    wide = {"calibration": {"texts": str(place / "text.jsonl"), "n_samples": 1, "length": 8}}
    out, method = tmp_path / "out", "llm-streamline-ffn"
    one, _ = fitted(config(out, methods=method, **wide))
    peaks = {row.stage: row.peak for row in memory_plan(one, one.models[0]).rows}
    assert 1.1 * peaks["calibrate"] < peaks["train"]
    tight = config(out, methods=method, memory=int(1.06 * peaks["calibrate"]), **wide)
    whole = config(out, methods=method, memory=int(1.06 * peaks["train"]), **wide)
    plain = {"method": method, "sparsity": 0.3, "out": out, "verify": False}
    with monkeypatch.context() as patch:
        patch.setattr(variants, "load_model", never)
        with pytest.raises(ConfigError, match="training needs .* of device memory"):
            prune_to_checkpoint(str(place / "model"), config=tight, **plain)
    assert list(tmp_path.iterdir()) == []
    prune_to_checkpoint(str(place / "model"), config=whole, **plain)
    assert (out / "config.json").is_file()


def test_pruning_streams_a_model_that_memory_does_not_hold(place, tmp_path, config):
    out = tmp_path / "out"
    one, estimate = fitted(config(out, methods="shortgpt"))
    small = one.model_copy(update={"memory": int(1.02 * estimate.memory_bytes)})
    said: list[str] = []

    class Shown(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    prune_to_checkpoint(
        str(place / "model"), method="shortgpt", sparsity=0.3, out=out, config=small,
        verify=False, progress=Shown(),
    )  # fmt: skip
    assert any("layers are read one at a time" in line for line in said)


@pytest.mark.parametrize(
    ("method", "sparsity", "message"),
    [
        ("random-layers", 0.99, "0.99 cannot be reached by removing layers"),
        ("slicegpt", 0.3, "layers"),
    ],
)
def test_pruning_refuses_before_any_work_what_a_dry_run_refuses(
    method, sparsity, message, place, tmp_path, monkeypatch, config
):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a refused cell must not load a model")

    monkeypatch.setattr(variants, "load_model", never)
    out = tmp_path / "out"
    settings = config(out, methods=method, sparsities=sparsity, stream=method == "slicegpt")
    reasons = [row.reason for row in plan_run(settings).rows if row.cell.method == method]
    with pytest.raises(UnsupportedModelError, match=message) as refused:
        prune_to_checkpoint(
            str(place / "model"), method=method, sparsity=sparsity, out=out, config=settings
        )
    assert [str(refused.value)] == reasons
    assert list(tmp_path.iterdir()) == []
