from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.files import write_json_atomic
from streamline.results.record_file import upsert
from streamline.run.cell import Cell, cell_key
from streamline.run.config import RunConfig
from streamline.run.folder import SETTINGS, claimed, refuse_mixture


def _config(out: Path, **changes: Any) -> RunConfig:
    values = {"models": "m", "methods": "dense,uidl", "limit": 5, "out": out, **changes}
    return RunConfig.model_validate(values)


def _finish(config: RunConfig, *methods: str) -> None:
    """Write the records and settings that a run of these methods leaves."""
    for method in methods:
        cell = Cell("m", method, 0.0 if method == "dense" else 0.25, 0)
        key = cell_key(cell, config, f"{method}()", "print")
        values = {"method_repr": f"{method}()", "versions": {"model_sha256": "print"}}
        upsert(config.out, cell.record(status="ok", key=key, **values))
    write_json_atomic(config.out / SETTINGS, config.model_dump(mode="json"))


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        match = "another run is using .*run: wait until it"
        with pytest.raises(ConfigError, match=match), claimed(tmp_path / "run"):
            pass
    with claimed(tmp_path / "run"):
        pass


def test_a_run_goes_on_and_grows(tmp_path: Path) -> None:
    _finish(_config(tmp_path), "dense", "uidl")
    refuse_mixture(_config(tmp_path))
    refuse_mixture(_config(tmp_path, methods="sleb", sparsities="0.1,0.4", seeds="1,2"))
    refuse_mixture(_config(tmp_path, models="other", limit=9))


def test_results_of_other_settings_are_not_added_to(tmp_path: Path) -> None:
    _finish(_config(tmp_path), "dense", "uidl")
    refuse_mixture(_config(tmp_path, limit=9))  # both cells are redone
    with pytest.raises(ConfigError, match=r"holds m uidl@0.25, made .*\(limit was 5\).* --out"):
        refuse_mixture(_config(tmp_path, methods="sleb", limit=9))


def test_an_empty_folder_is_no_matter(tmp_path: Path) -> None:
    refuse_mixture(_config(tmp_path / "none"))
