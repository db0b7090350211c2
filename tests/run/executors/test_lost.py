"""Records of other settings are no results of a run whose model or process is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.progress import Silent
from streamline.results.record import Record
from streamline.results.record_file import upsert
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import decided
from streamline.run.executors.tasks import Tasks

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)


def test_a_lost_models_cells_of_other_settings_are_failed(
    config: Make, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "model", tmp_path / "other")
    given = {"models": f"{place / 'model'},{tmp_path / 'other'}", "methods": "dense"}
    pipeline.run(config(tmp_path / "out", **given))
    (tmp_path / "other" / "model.safetensors").write_bytes(b"broken")
    status = [record.status for record in pipeline.run(config(tmp_path / "out", **given))]
    assert status == ["ok", "ok"], "it is done as it is wanted"
    found = pipeline.run(config(tmp_path / "out", **given, limit=3))
    assert [record.status for record in found] == ["ok", "failed"]


def test_cells_of_other_settings_are_left_to_do(config: Make, tmp_path: Path) -> None:
    pipeline.run(config(tmp_path, methods="shortgpt"))
    same = Tasks(decided(config(tmp_path, methods="shortgpt")).config, Silent(), 1)
    assert same.alone(same.parts[0]) == []
    limited = config(tmp_path, methods="shortgpt", limit=3)
    other = Tasks(decided(limited).config, Silent(), 1)
    assert len(other.alone(other.parts[0])) == 2
    other.failed(other.parts[0], ValueError("its process died"))
    assert [record.status for record in other.records()] == ["failed", "failed"]


def test_cells_that_memory_has_refused_are_left_to_do(config: Make, tmp_path: Path) -> None:
    _, record = pipeline.run(config(tmp_path, methods="shortgpt"))
    refused = record.to_json() | {"status": "skipped", "reason": "-", "notes": {"memory": True}}
    upsert(tmp_path, Record.build(refused))
    tasks = Tasks(decided(config(tmp_path, methods="shortgpt")).config, Silent(), 1)
    [left] = tasks.alone(tasks.parts[0])
    assert [cell.method for cell in left.cells or ()] == ["shortgpt"]
