"""The speed of a run's cells beside their numbers, and of cells that were done without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.errors import StreamlineError
from streamline.evaluation.efficiency.bench import Bench
from streamline.evaluation.efficiency.measure import Beside
from streamline.results.record import Record, label
from streamline.results.record_file import load
from streamline.run import model_run
from streamline.run.config import RunConfig
from streamline.run.pipeline import run

METHODS = "shortgpt,last-layers,llm-streamline-ffn,slicegpt"


@pytest.fixture(scope="module")
def quick(config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was measured as it went; only to be read."""
    out = tmp_path_factory.mktemp("quick") / "out"
    run(config(out, methods=METHODS, efficiency="quick"))
    return out


def speeds(records: list[Record]) -> dict[str, Any]:
    return {label(record): record.efficiency for record in records}


def test_every_row_is_measured_and_equal_shapes_once(quick: Path) -> None:
    found = speeds(load(quick))
    assert len(found) == 5
    for record in load(quick):
        one = record.efficiency
        assert one is not None and one.reason is None
        assert one.speed("decode", 8) and one.speed("prefill", 1) and one.peak_memory_bytes
        assert one.parameters == record.parameters.pruned
        assert one.dense is not None and one.dense.parameters == record.parameters.dense
    assert {name: one.measured_on for name, one in found.items()} == {
        "dense": None,
        "shortgpt@0.3": None,
        "last-layers@0.3": "shortgpt@0.3",
        "llm-streamline-ffn@0.3": None,
        "slicegpt@0.3": None,
    }


def test_no_answer_depends_on_it_and_later_nothing_is_asked_again_for_it(
    quick: Path,
    config: Callable[..., RunConfig],
    numbers: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    plain = run(config(out, methods=METHODS))
    assert [record.efficiency for record in plain] == [None] * 5
    assert numbers(plain) == numbers(load(quick))
    assert [record.key for record in plain] == [record.key for record in load(quick)]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is done already")

    for name in ("evaluate", "train", "preparation"):
        monkeypatch.setattr(model_run, name, never)
    after = run(config(out, methods=METHODS, efficiency="quick"))
    assert all(one.decode for one in speeds(after).values())
    without = [record.model_copy(update={"efficiency": None}) for record in after]
    assert [one.to_json() for one in without] == [one.to_json() for one in plain]

    monkeypatch.setattr(model_run, "load_dense", never)
    assert run(config(out, methods=METHODS, efficiency="quick")) == after
    assert run(config(out, methods=METHODS)) == after  # what is there stays


def test_a_new_cell_takes_what_was_measured_before(
    quick: Path,
    config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(quick, tmp_path / "out"))
    monkeypatch.setattr(Beside, "measure", lambda *_: pytest.fail("measured twice"))
    records = run(config(out, methods=f"{METHODS},random-layers", efficiency="quick"))
    assert speeds(records)["random-layers@0.3"].measured_on == "shortgpt@0.3"


def test_a_cell_is_worth_no_less_if_its_speed_cannot_be_had(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Bench, paths: object, cost: float) -> None:
        raise StreamlineError("no clock")

    monkeypatch.setattr(Bench, "measure", broken)
    records = run(config(tmp_path / "out", methods="shortgpt", efficiency="quick"))
    assert [record.status for record in records] == ["ok", "ok"]
    assert records[1].efficiency is not None
    assert records[1].efficiency.reason == "could not be measured: no clock"
    assert records[1].efficiency.decode == []


def test_a_streamed_model_has_none_and_says_why(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    records = run(config(tmp_path / "out", methods="shortgpt", efficiency="quick", stream=True))
    assert [record.status for record in records] == ["ok", "ok"]
    for record in records:
        assert record.efficiency is not None
        assert "read layer by layer" in str(record.efficiency.reason)
