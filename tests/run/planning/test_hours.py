"""Hours of a run: in order of what there is to do, and those that records know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from streamline import progress
from streamline.cli.screen.dry_run import show_plan
from streamline.progress import Silent
from streamline.run.cell import expand
from streamline.run.config import RunConfig, build_config
from streamline.run.pipeline import run
from streamline.run.planning import hours
from streamline.run.planning.estimate import plan_run
from streamline.run.planning.hours import TimePlan, TimeRow, expected, expecting, planned_times
from streamline.run.planning.plan import MemoryPlan, Refusal
from streamline.run.planning.rates import Rates

REPORT = Path(__file__).parents[3] / "reports" / "smollm2-135m" / "results.json"
#: Of the processor that made the report, as `measured` gives it on two cores of it.
THERE = Rates("two cores", 1.8e11, 2e10, False, "measured there")


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def planned(models: str, **changes: Any) -> dict[str, TimePlan]:
    values = {
        "models": models, "methods": "llm-streamline-ffn,shortgpt,sleb", "dry_run": True,
        "plan_for": "a100-80gb", "data": "packaged", **changes,
    }  # fmt: skip
    return plan_run(build_config(values)).times


def seconds(models: str, **changes: Any) -> float:
    (plan,) = planned(models, **changes).values()
    assert plan.seconds is not None
    return plan.seconds


def test_a_larger_model_takes_longer_stage_by_stage() -> None:
    plans = planned("opt-1.3b,opt-2.7b,opt-6.7b", sparsities=0.4)
    small, middle, large = (plan.stages() for plan in plans.values())
    for stage in ("load", "calibrate", "prune", "train", "evaluate"):
        assert 0 < small[stage] < middle[stage] < large[stage], stage
    totals = [plan.seconds or 0.0 for plan in plans.values()]
    assert totals == sorted(totals)


@pytest.mark.parametrize(
    "more",
    [
        {"methods": "llm-streamline-ffn,shortgpt,sleb,blockpruner"},
        {"sparsities": "0.15,0.25"},
        {"tasks": "commonsense,mmlu"},
        {"recovery": "none,lora"},
        {"plan_for": "t4"},
        {"dtype": "float32"},
        {"training": {"n_tokens": 500_000}},
    ],
)
def test_more_to_do_takes_longer(more: dict[str, Any]) -> None:
    given = {"training": {"n_tokens": 400_000}}
    assert seconds("opt-1.3b", **given | more) > 1.02 * seconds("opt-1.3b", **given)


def test_a_wave_runs_the_teacher_again() -> None:
    values = {"models": "opt-1.3b", "methods": "llm-streamline-ffn", "plan_for": "h200"}
    values |= {"dry_run": True, "data": "packaged"}
    from streamline.run.deciding.decide import decided

    config = decided(build_config(values)).config.for_model("opt-1.3b")
    cells = expand(config, "opt-1.3b")
    once, twice = (
        planned_times(config, cells, MemoryPlan("opt-1.3b", None, waves=waves)).stages()["train"]
        for waves in (1, 2)
    )
    assert 1.5 < twice / once < 2


def test_a_training_is_named_for_its_cells() -> None:
    (plan,) = planned("opt-1.3b", methods="llm-streamline-ffn", plan_for="h200").values()
    assert [row.of for row in plan.rows if row.stage == "train"] == ["1 cell"]


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["24GiB", "48GiB", "80GiB"])
@pytest.mark.parametrize("model", ["llama2-7b", "llama2-13b", "llama3-8b", "opt-6.7b"])
def test_the_plain_command_has_hours(model: str, memory: str) -> None:
    (plan,) = planned(model, methods="all", memory=memory).values()
    assert plan.untold == () and plan.rates is not None
    assert 60 < (plan.seconds or 0.0) < 48 * 3600
    assert all(row.seconds is not None and row.seconds >= 0 for row in plan.rows)


def test_the_embedded_suite_takes_what_its_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "rates_for", lambda *_: THERE)
    config = RunConfig.model_validate(
        build_config({}, suite="embedded").model_dump() | {"device": "cpu", "dtype": "float32"}
    )
    records = json.loads(REPORT.read_text())["records"]
    names = {record["method"] for record in records}
    config = config.model_copy(update={"methods": tuple(m for m in config.methods if m in names)})
    (plan,) = plan_run(config).times.values()
    found = plan.stages()
    costs = [record["cost"] for record in records]
    measured = {
        "train": sum(cost["train_s"] or 0.0 for cost in costs),
        "evaluate": sum(cost["eval_s"] or 0.0 for cost in costs),
        "speed": sum((record.get("efficiency") or {}).get("seconds") or 0 for record in records),
    }
    for stage, took in measured.items():
        assert took / 2 < found[stage] < took * 2, (stage, took, found)
    took = sum(measured.values())
    assert took / 1.5 < sum(found[stage] for stage in measured) < took * 1.5


@pytest.mark.parametrize("efficiency", ["quick", "full"])
def test_the_cells_take_together_what_the_stages_do(efficiency: str) -> None:
    (plan,) = planned("opt-1.3b", efficiency=efficiency).values()
    for stage, took in plan.stages().items():
        if stage != "load":
            each = sum(own.get(stage, 0.0) for own in plan.cells.values())
            assert each == pytest.approx(took), stage


def test_a_device_that_cannot_be_measured_keeps_no_run_from_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> Rates:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(hours, "rates_for", full)
    (plan,) = planned("opt-1.3b", plan_for=None).values()
    assert plan.seconds is None and "cannot be measured: " in str(plan.why)


def test_several_processes_are_done_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = planned("opt-1.3b")["opt-1.3b"].stages()
    monkeypatch.setenv("WORLD_SIZE", "4")
    four = planned("opt-1.3b")["opt-1.3b"].stages()
    for stage in ("calibrate", "prune", "evaluate"):
        assert four[stage] == pytest.approx(alone[stage] / 4), stage
    assert four["load"] == alone["load"] and four["train"] < alone["train"] / 2


def test_a_run_that_goes_on_is_planned_for_what_is_left(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []

    @contextmanager
    def noted(seconds: float | None) -> Iterator[None]:
        seen.append(seconds)
        yield

    monkeypatch.setattr("streamline.run.executors.local.planned", noted)
    monkeypatch.setattr(hours, "WORTH", 0.0)
    slow = Rates("a slow one", 1e6, 1e6, False, "made up")
    monkeypatch.setattr(hours, "rates_for", lambda *_: slow)
    run(config(tmp_path, methods="shortgpt"), Silent())
    run(config(tmp_path, methods="shortgpt,random-layers"), Silent())
    run(config(tmp_path, methods="shortgpt,random-layers"), Silent())
    run(config(tmp_path, methods="shortgpt,random-layers"), Silent(), redo=["random-layers"])
    first, second, third, fourth = seen
    assert first is not None and second is not None and 0 < second < 0.8 * first
    assert third == 0 and fourth == second


def test_the_whole_is_planned_anew_with_what_a_model_has_shown() -> None:
    plan = TimePlan("a", [TimeRow("evaluate", "1 models", 1.0, 40.0)], Rates("", 1, 1, False, ""))
    with expecting({"a": 100.0, "b": 7.0}), progress.planned(107.0):
        with plan.places([], [])[2]:
            assert progress.planned_seconds() == 47.0
        assert progress.planned_seconds() == 107.0
    with plan.places([], [])[0]:
        assert progress.planned_seconds() is None


def shown_hours(
    plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a dry run prints of the hours where memory is planned so."""
    values = {"models": "opt-1.3b", "methods": "shortgpt", "recovery": "none,lora", "limit": 9}
    values |= {"dry_run": True, "plan_for": "t4", "data": "packaged", "efficiency": "off"}
    monkeypatch.setattr("streamline.run.planning.fitting.memory_plan", lambda *_: plan)
    show_plan(build_config(values))
    return capsys.readouterr().out.partition("time of opt-1.3b")[2]


def test_cells_that_memory_refuses_have_no_hours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recovered(*refused: str) -> bool:
        too_large = Refusal("scoring", 2**34, 2**33, 18.0)
        found = MemoryPlan("opt-1.3b", 2**33, refused=dict.fromkeys(refused, too_large))
        shown = shown_hours(found, monkeypatch, capsys)
        assert "calibrate" in shown
        return "recover" in shown

    assert recovered() and not recovered("shortgpt 0.25 +lora")


def test_layers_in_parts_are_shown_with_what_they_run_once_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def operations(*in_parts: str) -> float:
        plan = MemoryPlan("opt-1.3b", None, in_parts=set(in_parts))
        shown = shown_hours(plan, monkeypatch, capsys)
        (line,) = [line.split() for line in shown.splitlines() if line.startswith("recover ")]
        return float(line[3].replace(",", ""))

    assert 1.3 < operations("shortgpt 0.25 +lora") / operations() < 1.5


def test_what_is_expected_is_known_of_all_models_or_of_none() -> None:
    assert expected(["a"]) is None
    with expecting({"a": 1.0, "b": 3.0, "c": None}):
        assert expected(["b", "a"]) == [3.0, 1.0]
        assert expected(["a", "c"]) is None
        assert expected(["a", "d"]) is None
    assert expected(["a"]) is None


def test_a_run_says_what_it_is_planned_to_take(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Shown(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    monkeypatch.setattr(hours, "WORTH", 0.0)
    slow = Rates("a slow one", 1e6, 1e6, False, "made up")
    monkeypatch.setattr(hours, "rates_for", lambda *_: slow)
    run(config(tmp_path, methods="shortgpt"), Shown())
    (line,) = [line for line in said if line.startswith("time planned: about ")]
    assert "calibrate" in line and "evaluate" in line
