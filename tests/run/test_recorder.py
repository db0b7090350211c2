"""How far cells have come is written every few seconds, and at the end, whatever ends them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.progress import Silent
from streamline.results.record_file import load, upsert
from streamline.run import recorder
from streamline.run.cell import CellJob, cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.inputs import settle, shared_inputs
from streamline.run.recorder import Recorder

Made = tuple[Recorder, list[CellJob]]


@pytest.fixture
def made(config: Callable[..., RunConfig], tmp_path: Path) -> Made:
    """A recorder of a run in ``tmp_path``, and its cells: the dense model's and two more."""
    run = config(tmp_path, methods="shortgpt,random-layers")
    [name] = run.models
    shared = shared_inputs(run, "", settle(run, None))
    return Recorder(run, name, "", Silent()), [cell_job(cell, shared) for cell in expand(run, name)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each writing of the file had."""
    found: list[int] = []

    def counted(folder: Path, *records: Any) -> None:
        found.append(len(records))
        upsert(folder, *records)

    monkeypatch.setattr(recorder, "upsert", counted)
    return found


def _reasons(folder: Path) -> list[str]:
    return [record.reason or "" for record in load(folder)]


def test_what_ends_cells_writes_how_far_they_have_come(
    made: Made, written: list[int], tmp_path: Path
) -> None:
    record, jobs = made
    with pytest.raises(KeyboardInterrupt), record:
        record.begin(jobs)
        assert all("nothing of it is done" in reason for reason in _reasons(tmp_path))
        for number in range(100):
            record.reached(jobs[:2], f"set {number} answered")
        assert written == [3]
        raise KeyboardInterrupt
    assert written == [3, 2]
    assert ["set 99 answered" in reason for reason in _reasons(tmp_path)] == [True, True, False]


def test_a_cell_that_has_ended_is_written_at_once_with_what_others_have_reached(
    made: Made, written: list[int], tmp_path: Path
) -> None:
    record, jobs = made
    with record:
        record.begin(jobs)
        record.reached(jobs, "piqa answered")
        record.failed(jobs[1], ValueError("no layer"), {})
        assert written == [3, 3]
        dense, failed, other = _reasons(tmp_path)
        assert "done so far: piqa answered" in dense and "done so far: piqa answered" in other
        assert "no layer" in failed
    assert written == [3, 3]


def test_what_was_put_off_is_written_though_nothing_more_is_reached(
    made: Made, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_EVERY_S", 0.2)
    record, jobs = made
    with record:
        record.begin(jobs)
        record.reached(jobs, "pruned")
        record.reached(jobs, "piqa answered")
        until = time.monotonic() + 30
        while len(written) == 1 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert all("done so far: pruned, piqa answered" in one for one in _reasons(tmp_path))
    assert written == [3, 3]
