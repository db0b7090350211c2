"""One model that cannot be worked: the others go on, and the run says which one it was."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamline.cli.main import main
from streamline.errors import AssetError
from streamline.results.record import Record
from streamline.results.record_file import load
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.planning.estimate import plan_run


@pytest.fixture(scope="module")
def broken(place: Path) -> dict[str, str]:
    """Folders of models that cannot be worked, by what is wrong with them."""
    weights, settings = place / "cut", place / "unsettled"
    for folder in (weights, settings):
        shutil.copytree(place / "model", folder)
    data = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(data[: len(data) // 2])
    (settings / "config.json").write_text("{", encoding="utf-8")
    return {"weights": str(weights), "config": str(settings)}


class _Task:
    """A call that is made when it is waited for."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args


class _RayError(Exception):
    """What Ray raises of a task whose process died."""


class _RayTaskError(_RayError):
    """What Ray raises in place of a task's own error."""


class _Ray:
    """Ray's calls, each task run where it is waited for; an error comes back wrapped."""

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)

    def __init__(self) -> None:
        self.is_initialized, self.cluster_resources = (lambda: True), dict
        self.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2
        self.dying: set[str] = set()

    def remote(self, task: Callable[..., Any]) -> Any:
        started = SimpleNamespace(remote=partial(_Task, task))
        return SimpleNamespace(options=lambda **_: started)

    def wait(self, waiting: list[_Task], **_: Any) -> tuple[list[_Task], list[_Task]]:
        return waiting[:1], waiting[1:]

    def get(self, task: _Task) -> Any:
        if self.dying & {cell.model for cell in task.args[1].cells}:
            raise _RayError("the worker died")
        try:
            return task.call(*task.args)
        except Exception as error:
            wrapped = _RayTaskError("a remote traceback")
            wrapped.cause = error  # type: ignore[attr-defined]
            raise wrapped from error


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> _Ray:
    """Ray as far as the executor calls it."""
    found = _Ray()
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


@pytest.mark.parametrize(
    ("what", "first", "executor"),
    [
        ("weights", True, "local"),
        ("weights", False, "ray"),
        ("config", True, "local"),
        pytest.param("weights", False, "local", marks=pytest.mark.slow),
        pytest.param("weights", True, "ray", marks=pytest.mark.slow),
        pytest.param("config", True, "ray", marks=pytest.mark.slow),
    ],
)
def test_a_broken_model_fails_alone_in_either_order(
    what: str,
    first: bool,
    executor: str,
    broken: dict[str, str],
    place: Path,
    tmp_path: Path,
    ray: _Ray,
    config: Callable[..., RunConfig],
    numbers: Callable[[list[Record]], list[Any]],
) -> None:
    good, bad = str(place / "model"), broken[what]
    both = ",".join([bad, good] if first else [good, bad])
    settings = config(tmp_path, methods="shortgpt", models=both, executor=executor)
    records = pipeline.run(settings)
    found = {(record.model, record.method): record.status for record in records}
    assert found == {
        (good, "dense"): "ok",
        (good, "shortgpt"): "ok",
        (bad, "dense"): "failed",
        (bad, "shortgpt"): "failed",
    }
    assert all(Path(bad).name in (r.reason or "") for r in records if r.model == bad)
    assert all(("model_sha256" in r.versions) == (r.model == good) for r in records)
    assert (tmp_path / "report.html").is_file()


def test_a_worker_that_dies_loses_its_own_model(
    broken: dict[str, str],
    place: Path,
    tmp_path: Path,
    ray: _Ray,
    config: Callable[..., RunConfig],
) -> None:
    good, other = str(place / "model"), broken["weights"]
    ray.dying = {other}
    settings = config(tmp_path, methods="dense", models=f"{other},{good}", executor="ray")
    lost, done = pipeline.run(settings)
    assert (lost.status, done.status) == ("failed", "ok")
    assert "the worker died" in (lost.reason or "")


def test_the_only_model_of_a_run_ends_it(
    broken: dict[str, str], tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    for what in broken:
        with pytest.raises(AssetError):
            pipeline.run(config(tmp_path / what, methods="dense", models=broken[what]))


def test_cells_that_are_done_stay_when_their_model_breaks(
    place: Path, tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    later = tmp_path / "later"
    shutil.copytree(place / "model", later)
    both = f"{later},{place / 'model'}"
    first = pipeline.run(config(tmp_path / "out", methods="dense", models=both))
    assert [record.status for record in first] == ["ok", "ok"]
    (later / "model.safetensors").write_bytes(b"")
    again = pipeline.run(config(tmp_path / "out", methods="dense,shortgpt", models=both))
    assert [record.status for record in again] == ["ok", "failed", "ok", "ok"]


def test_a_plan_has_the_models_that_can_be_planned(
    broken: dict[str, str],
    place: Path,
    tmp_path: Path,
    config: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = str(place / "model")
    estimate = plan_run(config(tmp_path, methods="dense", models=f"{broken['config']},{good}"))
    assert [row.cell.model for row in estimate.rows] == [good]
    assert list(estimate.broken) == [broken["config"]]
    models = f"{broken['config']},{good}"
    with pytest.raises(SystemExit) as ended:
        main(["--models", models, "--methods", "dense", "--dry-run", "--out", str(tmp_path)])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "cannot be planned" in shown.err
    assert f"{good}: " in shown.out


def test_a_name_that_no_model_can_have_is_refused_before_any_work(
    place: Path, tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    models = f"{place / 'model'},./nowhere"
    with pytest.raises(AssetError, match="nowhere"):
        pipeline.run(config(tmp_path, methods="dense", models=models))
    assert load_or_none(tmp_path) is None


def load_or_none(folder: Path) -> list[Record] | None:
    """The records of a folder, or None where there are none."""
    return load(folder) if (folder / "results.json").is_file() else None
