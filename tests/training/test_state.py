from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from streamline.training.schedule import Schedule
from streamline.training.state import TrainingState


def state(directory: Path | None = None, key: str = "k", n_steps: int = 4) -> TrainingState:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
    schedule = Schedule(n_steps=n_steps, peak=0.1, final=0.01)
    return TrainingState(
        label="a",
        key=key,
        parameters=dict(layer.named_parameters()),
        schedule=schedule,
        directory=directory,
    )


def step(one: TrainingState, value: float = 1.0) -> None:
    for parameter in one.parameters.values():
        parameter.grad = torch.full_like(parameter, value)
    one.update(value, 10)


def test_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    one = state(tmp_path)
    one.validated(3.0)
    step(one)
    one.validated(2.0)
    step(one, -0.3)
    one.save()
    two = state(tmp_path)
    two.resume()
    assert two.rows == one.rows
    assert (two.step, two.best_loss, two.best_step) == (2, 2.0, 1)
    for each in (one, two):
        step(each, 0.7)
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, two.parameters[name])
        assert torch.equal(one.best[name], two.best[name])
        assert not torch.equal(parameter, one.best[name])


def test_another_key_is_ignored(tmp_path: Path) -> None:
    one = state(tmp_path)
    one.validated(3.0)
    step(one)
    one.save()
    other = state(tmp_path, key="other")
    other.resume()
    assert other.step == 0
    one.finish()
    other.resume()
    assert other.step == 0
    same = state(tmp_path)
    same.resume()
    assert same.step == 1


def test_a_later_training_under_the_same_label_can_be_resumed(tmp_path: Path) -> None:
    old = state(tmp_path, key="old")
    old.validated(1.0)
    old.finish()
    new = state(tmp_path, key="new")
    new.validated(3.0)
    step(new)
    new.save()
    again = state(tmp_path, key="new")
    again.resume()
    assert again.step == 1


def test_finish_restores_the_best(tmp_path: Path) -> None:
    one = state(tmp_path)
    one.validated(1.0)
    step(one)
    one.validated(5.0)
    one.finish()
    assert all(bool((p == 1).all()) for p in one.parameters.values())
    again = state(tmp_path)
    again.resume()
    assert (again.best_loss, again.best_step) == (1.0, 0)
    assert all(bool((p == 1).all()) for p in again.parameters.values())
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["a.safetensors"]


def test_nan_at_the_start_gives_way_to_a_number() -> None:
    one = state()
    one.validated(math.nan)
    step(one)
    one.validated(2.0)
    assert (one.best_loss, one.best_step) == (2.0, 1)
    assert one.rows[0]["validation_loss"] is None
    assert math.isnan(one.losses("mse", [[0, 1]]).before)
    assert one.losses("mse", [[0, 1]]).summary()["before"] is None


def test_gradients_are_clipped_to_their_norm() -> None:
    one = state()
    one.clip = 1.0
    seen = []
    one.optimiser.register_step_pre_hook(
        lambda *_: seen.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in one.parameters.values()))
        )
    )
    step(one, 100.0)
    assert seen == pytest.approx([1.0])
