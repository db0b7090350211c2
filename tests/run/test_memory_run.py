"""Runs that keep to less memory than there is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.api.variants import Variant
from streamline.methods import teacher_fits
from streamline.run import model_run
from streamline.run.config import RunConfig
from streamline.run.pipeline import run
from streamline.run.planning.fitting import fitted, memory_plan
from streamline.streaming.decoder import StreamedDecoder
from streamline.testing.models import tiny_model, tiny_tokenizer

METHODS = "shortgpt,llm-streamline-ffn,llm-streamline-layer"


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory, config: Callable[..., RunConfig]) -> Any:
    """``needs(stage, methods)``: bytes that a stage of a run of the tiny model is planned with."""

    def found(stage: str, methods: str) -> int:
        one, _ = fitted(config(tmp_path_factory.mktemp("plan"), methods=methods))
        (row,) = [r for r in memory_plan(one, one.models[0]).rows if r.stage == stage]
        return row.peak

    return found


def test_a_cell_that_does_not_fit_is_skipped_and_done_where_there_is_more(
    config: Callable[..., RunConfig], needs: Any, tmp_path: Path
) -> None:
    least, most = needs("calibrate", "shortgpt"), needs("train", "llm-streamline-ffn")
    assert 1.2 * least < most
    tight = config(
        tmp_path, methods="shortgpt,llm-streamline-ffn", memory=int((1.06 * least + most) / 2)
    )
    dense, short, ffn = run(tight)
    assert [r.status for r in (dense, short, ffn)] == ["ok", "ok", "skipped"]
    assert "device memory" in str(ffn.reason) and "are planned" in str(ffn.reason)
    again = run(config(tmp_path, methods="shortgpt,llm-streamline-ffn"))
    assert [r.status for r in again] == ["ok", "ok", "ok"]
    assert [r.key for r in again[:2]] == [dense.key, short.key]


@pytest.mark.slow
def test_a_run_in_waves_gives_the_same_records(
    config: Callable[..., RunConfig], needs: Any, numbers: Any, tmp_path: Path
) -> None:
    said: list[str] = []

    class Shown:
        def stage(self, name: str, total: float | None = None) -> None:
            """Nothing."""

        def step(self, done: float, total: float, message: str = "") -> None:
            """Nothing."""

        def say(self, message: str) -> None:
            said.append(message)

    together = needs("train", METHODS)
    whole = run(config(tmp_path / "whole", methods=METHODS))
    waves = run(config(tmp_path / "waves", methods=METHODS, memory=together), Shown())
    assert any("networks are trained in 2 waves" in line for line in said)
    assert any(line.startswith("memory planned: ") for line in said)
    assert numbers(whole) == numbers(waves)


def test_what_needs_all_layers_of_a_model_too_large_is_done_where_there_is_more(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    model = tiny_model("llama", hidden_size=256, intermediate_size=512, n_layers=8)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    weights = 4 * sum(p.numel() for p in model.parameters())
    given = {"models": str(tmp_path / "model"), "methods": "shortgpt,slicegpt"}
    found = run(config(tmp_path / "out", memory=int(0.7 * weights), **given))
    assert [record.status for record in found] == ["ok", "ok", "skipped"]
    assert "having all layers at once needs" in str(found[2].reason)
    again = run(config(tmp_path / "out", **given))
    assert [record.status for record in again] == ["ok"] * 3
    assert [record.key for record in again] == [record.key for record in found]


def test_sums_that_do_not_fit_together_are_made_one_by_one(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", hidden_size=256, intermediate_size=512, n_layers=8)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    given = {"models": str(tmp_path / "model"), "methods": "linearpatch,replaceme", "stream": True}
    given |= {"sparsities": "0.2,0.4"}
    one, _ = fitted(config(tmp_path / "plan", memory=2**30, **given))
    (row,) = [r for r in memory_plan(one, one.models[0]).rows if r.stage == "prune"]
    passes: list[Any] = []
    summed = teacher_fits.run

    def counted(paths: Any, jobs: Any, **more: Any) -> Any:
        if isinstance(paths[0].decoder, StreamedDecoder):  # not in planning
            passes.append(paths)
        return summed(paths, jobs, **more)

    monkeypatch.setattr(teacher_fits, "run", counted)
    made = []
    for name, memory, count in (("together", 1.01, 1), ("apart", 0.9, 1 + 4)):
        size = int(memory * row.peak / 0.95)
        made.append(run(config(tmp_path / name, memory=size, **given)))
        assert [record.status for record in made[-1]] == ["ok"] * 5
        assert len(passes) == count
    assert [r.plan for r in made[0]] == [r.plan for r in made[1]]
    assert [r.summary for r in made[0]] == [r.summary for r in made[1]]


def test_networks_that_have_answered_are_gone_before_models_of_their_own_are_made(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[Any]] = []
    alive: list[int] = []
    trained, own = model_run._trained, model_run._own

    def noted(*args: Any) -> list[Variant]:
        variants = trained(*args)
        networks.extend(weakref.ref(s.module) for v in variants for s in v.pruned.students)
        return variants

    def counted(*args: Any) -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in networks))
        own(*args)

    monkeypatch.setattr(model_run, "_trained", noted)
    monkeypatch.setattr(model_run, "_own", counted)
    settings = {"methods": "llm-streamline-ffn,slicegpt", "recovery": "none,lora"}
    records = run(config(tmp_path, lora={"n_tokens": 64}, **settings))
    assert [record.status for record in records] == ["ok"] * 5
    assert len(networks) == 2 and alive == [0]


def test_a_model_that_is_larger_than_the_memory_is_streamed(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    one, estimate = fitted(config(tmp_path, methods="shortgpt"))
    small, planned = fitted(one.model_copy(update={"memory": int(0.9 * estimate.memory_bytes)}))
    assert small.for_model(small.models[0]).stream
    assert "read one at a time" in planned.remarks[0]
    assert planned.memory_bytes < 0.9 * estimate.memory_bytes
    assert not one.for_model(one.models[0]).stream
