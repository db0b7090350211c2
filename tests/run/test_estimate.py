from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from streamline.errors import ConfigError
from streamline.run import pipeline
from streamline.run.config import RunConfig, build_config
from streamline.run.planning import estimate as sizing
from streamline.run.planning.estimate import (
    Estimate,
    check_fits,
    device_memory,
    plan_run,
    refuse_unfit,
)
from streamline.sources.models import load_config

GIB = 2**30


def _config(**changes: Any) -> RunConfig:
    values = {"models": "llama2-7b", "methods": "llm-streamline-ffn", **changes}
    return build_config(values)


def _flops(estimate: Estimate) -> dict[str, float]:
    """Operations by stage, of all models."""
    found: dict[str, float] = {}
    for row in (row for plan in estimate.times.values() for row in plan.rows):
        found[row.stage] = found.get(row.stage, 0.0) + row.flops
    return found


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def test_counts_and_costs_follow_from_the_config() -> None:
    estimate = plan_run(_config(training={"n_tokens": 1000, "epochs": 3}, dtype="bfloat16"))
    dense, ffn = estimate.rows
    layer, added = 202_383_360, 134_238_208
    assert (dense.n_removed, dense.pruned) == (0, 6_738_415_616)
    assert (ffn.n_removed, ffn.pruned) == (9, 6_738_415_616 - 9 * layer + added)
    tokens = {"calibration": 64 * 512, "training": 3000, "recovery": 0, "heldout": 16_384}
    assert estimate.tokens == tokens
    matrices, calibration = layer - 2 * 4096, 64 * 512
    flops = _flops(estimate)
    assert flops["calibrate"] == 2 * (32 * matrices + 33 * 33 * 4096) * calibration
    looked = 8192  # the teacher's states of the validation are kept; networks look five times
    student = (6 * 3000 + 2 * 5 * looked) * added
    assert flops["train"] == 2 * 32 * matrices * (3000 + looked) + student
    assert estimate.memory_bytes == 2 * 6_738_415_616
    assert estimate.download_bytes == 2 * 6_738_415_616
    assert estimate.work_bytes == 16 * added


def test_a_second_training_is_counted() -> None:
    training = {"n_tokens": 1000, "epochs": 3, "post_train": {"n_tokens": 500}}
    assert plan_run(_config(training=training)).tokens["training"] == 3500


def test_dense_alone_needs_no_calibration_and_no_training() -> None:
    estimate = plan_run(_config(methods="dense"))
    tokens = {"calibration": 0, "training": 0, "recovery": 0, "heldout": 16_384}
    assert estimate.tokens == tokens
    assert (estimate.memory_bytes, estimate.work_bytes) == (4 * 6_738_415_616, 0)


def test_recovery_costs_every_cell_that_has_it() -> None:
    config = _config(
        methods="llm-streamline-none,shortgpt",
        lora={"n_tokens": 700},
        per_method={"shortgpt": {"recovery": "none,lora"}},
    )
    estimate = plan_run(config)
    assert [row.cell.recovery for row in estimate.rows] == ["none", "none", "none", "lora"]
    assert estimate.tokens["recovery"] == 700
    matrices, head = 202_383_360 - 2 * 4096, 32_000 * 4096
    adapters = 24 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    expected = 700 * (4 * (24 * matrices + head) + 6 * adapters)
    assert _flops(estimate)["recover"] == pytest.approx(expected, rel=1e-3)


def test_distillation_also_runs_the_dense_model() -> None:
    dense = 32 * (202_383_360 - 2 * 4096) + 32_000 * 4096
    run = {"methods": "llm-streamline-none", "lora": {"n_tokens": 700}}
    tuned, taught = (plan_run(_config(**run, recovery=stage)) for stage in ("lora", "kd"))
    assert _flops(taught)["recover"] - _flops(tuned)["recover"] == pytest.approx(700 * 2 * dense)
    assert taught.memory_bytes == tuned.memory_bytes


def test_each_model_is_planned_with_its_own_settings() -> None:
    config = _config(
        models="opt-1.3b,opt-2.7b",
        per_model={"opt-2.7b": {"sparsities": "0.1,0.2", "training": {"n_tokens": 50_000}}},
    )
    estimate = plan_run(config)
    asked = [(row.cell.model, row.cell.sparsity) for row in estimate.rows if row.cell.sparsity]
    assert asked == [("opt-1.3b", 0.25), ("opt-2.7b", 0.1), ("opt-2.7b", 0.2)]
    assert estimate.tokens["training"] == 2 * (100_000 + 50_000)


def test_a_cell_that_cannot_be_has_its_reason() -> None:
    _, row = plan_run(_config(methods="llm-streamline-none", sparsities=0.99)).rows
    assert (row.pruned, row.removed_fraction) == (None, None)
    assert "cannot be reached" in str(row.reason)
    assert row.to_json()["reason"] == row.reason


def test_weights_that_lie_here_are_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plan_run(_config()).download_bytes > 0
    hub = tmp_path / "hub"
    load_config("llama2-7b").save_pretrained(hub)
    index = {"weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(hub / "config.json")
    )
    assert plan_run(_config()).download_bytes > 0, "a file that the index names is not here"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config("llama2-7b"))
    write_header(hub / "model-1.safetensors", model)
    index = {"weight_map": dict.fromkeys(model.state_dict(), "model-1.safetensors")}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    assert plan_run(_config()).download_bytes == 0


def write_header(file: Path, model: torch.nn.Module) -> None:
    """A safetensors file of a model's tensors, all zero and of no size on the disk."""
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + tensor.numel() * 2
        row = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[name] = row
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def test_what_does_not_fit_is_named_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = type("Usage", (), {"free": 3 * GIB})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    fits = Estimate(memory_bytes=2 * GIB, download_bytes=GIB, work_bytes=2 * GIB)
    assert check_fits(fits, tmp_path / "new" / "run", 2 * GIB) == []
    assert check_fits(Estimate(memory_bytes=9 * GIB), tmp_path, None) == []
    memory, disk = check_fits(
        Estimate(memory_bytes=3 * GIB, download_bytes=2 * GIB, work_bytes=2 * GIB),
        tmp_path,
        2 * GIB,
    )
    assert "at least 3.0 GiB of device memory, and there are 2.0 GiB; use --dtype" in memory
    assert "at least 4.0 GiB of disk" in disk
    assert "3.0 GiB are free" in disk


def test_a_run_is_refused_before_anything_is_loaded_or_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: GIB)
    config = _config(out=tmp_path / "run")
    with pytest.raises(ConfigError, match="at least 25.1 GiB of device memory"):
        pipeline.run(config)
    assert not (tmp_path / "run").exists()


def test_other_machines_memory_is_not_judged_by_this_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: GIB)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**50}))
    there = _config(executor="ray", out=tmp_path)
    refuse_unfit(plan_run(there), there)


def test_the_main_memory_is_what_a_cpu_has() -> None:
    memory = device_memory("cpu")
    assert memory is not None
    assert memory > GIB // 2


def test_a_model_spread_over_devices_has_all_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda name: GIB if name == "cpu" else 2 * GIB)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert sizing.run_memory(_config(device="cuda", device_map="auto")) == 5 * GIB
    assert sizing.run_memory(_config(device="cuda")) == 2 * GIB
