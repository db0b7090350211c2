"""A run of which nothing is missing needs no model: it may be gone, here and on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from streamline.errors import AssetError
from streamline.progress import Silent
from streamline.run.pipeline import run
from streamline.run.reporting import report_run
from streamline.sources.hub.commits import forget_commits

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def hub_cache(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on this machine with ``some/model`` in it; the hub cannot be asked."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    model = folder / "models--some--model"
    shutil.copytree(place / "model", model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_finished_run_ends_well_when_its_model_is_gone(config, hub_cache, tmp_path):
    wanted = config(tmp_path / "out", models="some/model", methods="shortgpt")
    first = run(wanted)
    assert [record.status for record in first] == ["ok", "ok"]
    shutil.rmtree(hub_cache)
    forget_commits()
    said = Said()
    again = run(wanted, said)
    assert [record.key for record in again] == [record.key for record in first]
    assert said.lines[-1] == "all 2 cells are done already"
    assert report_run(wanted.out).is_file()
    for other in (wanted.model_copy(update={"sparsities": (0.5,)}), None):
        with pytest.raises(AssetError, match="some/model"):
            run(other or wanted, redo=() if other else ("",))
    assert (wanted.out / "report.html").is_file()
