"""A run as jobs of submitit, on its own executors that need no SLURM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run.shards.conftest import outcome

from streamline.errors import ConfigError
from streamline.progress import Silent
from streamline.results.record_file import load
from streamline.run import executors, pipeline
from streamline.run.config import RunConfig
from streamline.run.executors.local import LocalExecutor
from streamline.run.executors.slurm import SlurmExecutor
from streamline.run.executors.tasks import Tasks, work_task
from streamline.run.planning.estimate import device_memory, run_memory
from streamline.run.shards.part import Part

Make = Callable[..., RunConfig]


def _on(monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(executors, "SlurmExecutor", lambda: SlurmExecutor(cluster))
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)


# submitit leaves the logs of jobs in this process open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_are_the_run_of_all(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(monkeypatch, "debug")
    own = {"methods": "shortgpt,uidl", "slurm": {"timeout_min": 5, "slurm_partition": "any"}}
    records = pipeline.run(config(tmp_path / "jobs", executor="slurm", shards=2, **own))
    here = pipeline.run(config(tmp_path / "here", methods="shortgpt,uidl"))
    assert outcome(tmp_path / "jobs", records) == outcome(tmp_path / "here", here)
    assert [record.identity for record in load(tmp_path / "jobs")] == [r.identity for r in here]


# submitit leaves processes that have ended to the system.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_fails_or_dies_costs_only_its_own_cells(
    config: Make, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(monkeypatch, "local")
    methods = "shortgpt,nearby:Raises,nearby:Exits"
    own = {"executor": "slurm", "shards": 1, "slurm": {"timeout_min": 30}}
    records = pipeline.run(config(plugin / "jobs", methods=methods, **own))
    failed = {record.method: record.reason for record in records if record.status == "failed"}
    assert list(failed) == ["nearby:Raises", "nearby:Exits"], failed
    assert "no layer will do" in failed["nearby:Raises"]
    assert "its process died" in failed["nearby:Exits"]


def test_a_job_keeps_to_the_memory_of_its_machine(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int | None] = []

    def run(_: object, config: RunConfig, *__: object) -> list[object]:
        found.append(run_memory(config))
        return []

    monkeypatch.setattr(LocalExecutor, "run", run)
    part = Part("1-of-1", frozenset())
    work_task(config(tmp_path, executor="slurm", methods="shortgpt"), part, "no such folder")
    assert found == [device_memory("cpu")] and found != [None]


def test_a_job_whose_device_is_not_here_fails_alone(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = config(tmp_path, executor="slurm", device="cuda", methods="shortgpt")
    tasks = Tasks(run, Silent(), 1)
    [part] = tasks.parts
    tasks.failed(part, ValueError("no layer will do"))
    found = load(part.folder(tmp_path))
    assert len(found) == 2 and all("no layer will do" in str(record.reason) for record in found)


def test_a_job_is_queued_again_as_often_as_its_time_ends(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(monkeypatch, "slurm")
    (tmp_path / "srun").touch(mode=0o755)  # by which submitit knows SLURM
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found: list[int] = []

    def submitted(_: object, jobs: Any, works: object) -> dict[Any, Any]:
        found.append(jobs._executor.max_num_timeout)
        return {}

    monkeypatch.setattr(SlurmExecutor, "_submitted", submitted)
    pipeline.run(config(tmp_path / "out", executor="slurm", device="cuda", methods="dense"))
    assert found[0] >= 100  # submitit's own is 3


def test_what_slurm_does_not_know_is_refused(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(monkeypatch, "debug")
    wrong = config(tmp_path, executor="slurm", slurm={"qeue": "long"}, methods="dense")
    with pytest.raises(ConfigError, match=r"SLURM cannot be used.*qeue.*partition"):
        pipeline.run(wrong)


@pytest.mark.parametrize(("executor", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_extra_that_is_not_installed_is_asked_for(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"pip install 'streamline-bench\[{executor}\]'"):
        pipeline.run(config(tmp_path, executor=executor, methods="dense"))
