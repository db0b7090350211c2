from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.run.config import RunConfig, build_config
from streamline.run.planning import estimate as sizing
from streamline.run.planning.fitting import fitted, memory_plan, told
from streamline.run.planning.plan import MemoryPlan
from streamline.testing.models import tiny_model, tiny_tokenizer

GIB = 2**30
METHODS = "llm-streamline-ffn,llm-streamline-layer,shortgpt,shortened-llama-taylor,slicegpt"


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def planned(model: str, memory: str, **changes: Any) -> tuple[RunConfig, MemoryPlan]:
    values = {
        "models": model, "methods": METHODS, "dtype": "bfloat16", "device": "cuda",
        "memory": memory, "dry_run": True, **changes,
    }  # fmt: skip
    config, _ = fitted(build_config(values))
    return config, memory_plan(config.for_model(model), model)


@pytest.mark.parametrize(
    ("model", "memory", "streams"),
    [
        pytest.param("llama2-7b", "24GiB", False, marks=pytest.mark.slow),
        pytest.param("llama2-7b", "48GiB", False, marks=pytest.mark.slow),
        pytest.param("llama2-7b", "80GiB", False, marks=pytest.mark.slow),
        pytest.param("llama2-13b", "24GiB", True, marks=pytest.mark.slow),
        pytest.param("llama2-13b", "48GiB", False, marks=pytest.mark.slow),
        pytest.param("llama2-13b", "80GiB", False, marks=pytest.mark.slow),
        pytest.param("llama3-8b", "24GiB", False, marks=pytest.mark.slow),
        pytest.param("llama3-8b", "48GiB", False, marks=pytest.mark.slow),
        pytest.param("llama3-8b", "80GiB", False, marks=pytest.mark.slow),
        pytest.param("opt-6.7b", "24GiB", False, marks=pytest.mark.slow),
        pytest.param("opt-6.7b", "48GiB", False, marks=pytest.mark.slow),
        pytest.param("opt-6.7b", "80GiB", False, marks=pytest.mark.slow),
    ],
)
def test_the_plain_command_fits(model: str, memory: str, streams: bool) -> None:
    config, plan = planned(model, memory)
    assert config.for_model(model).stream == streams
    assert plan.memory is not None and plan.usable is not None
    assert 0.2 * plan.memory < plan.peak <= plan.usable or streams
    assert plan.peak <= plan.usable
    if memory == "80GiB":
        assert plan.refused == {}


def test_a_cell_that_does_not_fit_has_its_number_and_the_others_stay() -> None:
    _, plan = planned("llama2-7b", "22GiB", methods="llm-streamline-ffn,slicegpt")
    (label,) = plan.refused
    assert label == "slicegpt 0.25"
    assert "23." in plan.refused[label] and "22.0 GiB are planned" in plan.refused[label]
    assert [row.stage for row in plan.rows] == ["calibrate", "train", "evaluate", "speed"]
    assert told(plan)[0].startswith("memory planned: 18.")
    _, plan = planned("llama2-7b", "22GiB", methods="llm-streamline-ffn", efficiency="off")
    assert [row.stage for row in plan.rows] == ["calibrate", "train", "evaluate"]


@pytest.mark.slow
def test_networks_that_do_not_fit_together_are_trained_in_waves() -> None:
    methods = ",".join(f"llm-streamline-layer+init={init}" for init in ("first", "last", "mean"))
    _, roomy = planned("llama2-7b", "48GiB", methods=methods)
    _, tight = planned("llama2-7b", "24GiB", methods=methods)
    assert (roomy.waves, roomy.students) == (1, None)
    assert tight.waves > 1 and tight.students is not None and tight.refused == {}
    assert "trained in" in tight.decisions()[0]


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1.5gib", 3 * 2**29)]
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert build_config({"models": "opt-1.3b", "methods": "dense", "memory": text}).memory == size


@pytest.mark.parametrize("text", ["24", "GiB", "0GiB", "much"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 24GiB"):
        build_config({"models": "opt-1.3b", "methods": "dense", "memory": text})


def test_a_run_takes_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: 8 * GIB)
    values = {"models": "opt-1.3b", "methods": "dense", "memory": "24GiB"}
    assert sizing.run_memory(build_config(values)) == 8 * GIB
    assert sizing.run_memory(build_config(values | {"memory": "4GiB"})) == 4 * GIB
    assert sizing.run_memory(build_config(values | {"dry_run": True})) == 24 * GIB


@pytest.mark.slow
def test_distillation_of_all_weights_holds_each_of_them_five_times_in_float32() -> None:
    pruned = 6_738_415_616 - 8 * 202_383_360
    run = {"methods": "llm-streamline-none", "recovery": "kd"}
    adapters, whole = (
        next(row.added for row in plan.rows if row.stage == "fine-tune")
        for _, plan in (
            planned("llama2-7b", "400GiB", **run),
            planned("llama2-7b", "400GiB", **run, kd={"trainees": "all"}),
        )
    )
    assert whole - adapters == 5 * 4 * pruned


@pytest.mark.slow
def test_processes_that_share_a_model_hold_parts_of_what_one_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"methods": "llm-streamline-none", "recovery": "kd", "kd": {"trainees": "all"}}
    alone = planned("llama2-7b", "80GiB", **run)[1]
    assert alone.refused and all("needs" in reason for reason in alone.refused.values())
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert planned("llama2-7b", "80GiB", **run)[1].refused == {}


@pytest.mark.parametrize("family", ["gemma2", "olmoe"])
def test_a_family_is_planned_as_it_can_be_run_and_torch_says_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    said: list[object] = []
    handler = SimpleNamespace(level=0, handle=said.append)
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handlers", [handler])
    place = {"dtype": "float32", "device": "cpu", "data": "packaged", "sparsities": 0.3}
    _, plan = planned(str(tmp_path / "model"), "1GiB", methods="llm-streamline-ffn", **place)
    added = {row.stage: row.added for row in plan.rows}
    head = 2_048 * model.config.hidden_size * 4
    assert min(added[stage] for stage in ("train", "evaluate")) > head
    assert said == []
