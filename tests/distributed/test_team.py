"""What a launcher says decides which devices and executors a process may use."""

from __future__ import annotations

import pytest
import torch

from streamline.api.variants import load_dense
from streamline.distributed.team import leads, local, team
from streamline.distributed.work import led, scatter, shared
from streamline.environment import pick_device
from streamline.errors import ConfigError
from streamline.progress import Silent
from streamline.run import pipeline
from streamline.run.config import build_config


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the third of four processes on a machine with four GPUs."""
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:2"])
def test_each_of_several_processes_takes_its_own_gpu(third_of_four: None, name: str) -> None:
    assert pick_device(name) == torch.device("cuda", 2)


def test_another_ones_gpu_is_refused(third_of_four: None) -> None:
    with pytest.raises(ConfigError, match="'cuda:1' was given to each of several processes"):
        pick_device("cuda:1")


def test_one_process_may_choose(third_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("auto") == torch.device("cuda")


def test_a_model_is_not_spread_by_each_of_several(third_of_four: None) -> None:
    how = {"device": "auto", "dtype": "auto", "stream": False, "trust_remote_code": False}
    with pytest.raises(ConfigError, match="--device-map auto spreads .* 4 were launched"):
        load_dense("model", "", Silent(), device_map="auto", **how)


def test_ray_is_not_started_by_each_of_several(
    third_of_four: None, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(pipeline, "together", lambda work: work())
    config = build_config(
        {"models": "m", "methods": "shortgpt", "executor": "ray", "out": tmp_path / "out"}
    )
    with pytest.raises(ConfigError, match="use --executor ray or 4 processes, not both"):
        pipeline.run(config)


def test_outside_a_team_everything_is_done_here() -> None:
    assert leads() and team().size == 1
    assert shared(lambda: 1) == 1
    with local():
        assert scatter(lambda shard, *, progress: shard.size) == [1]
    with pytest.raises(ValueError, match="cannot be entered"), led(_Locked()):
        raise AssertionError("it was entered")


class _Locked:
    def __enter__(self) -> None:
        raise ValueError("cannot be entered")

    def __exit__(self, *_: object) -> None: ...
