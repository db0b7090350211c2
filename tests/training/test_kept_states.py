"""Teacher states on disk: marks and states that do not fit each other are taken as not filled."""

from __future__ import annotations

import logging

import pytest
import torch
from damages import DAMAGES

from streamline.training.activations import ActivationCache, ActivationStore
from streamline.training.fit import fit

SHAPE = (6, 3, 8)
STATES = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def filled(folder) -> ActivationStore:
    store = ActivationStore({1, 4}, SHAPE, torch.bfloat16, folder)
    for depth in (1, 4):
        store.write(depth, torch.arange(4), STATES[:4] * depth)
    return store


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["states", "filled"])
def test_a_damaged_store_gives_no_state_that_was_not_written(tmp_path, part, damage):
    filled(tmp_path)
    DAMAGES[damage](tmp_path / f"depth-4.{part}")
    again = ActivationStore({1, 4}, SHAPE, torch.bfloat16, tmp_path)
    held = [index for index in range(6) if again.holds(torch.tensor([index]))]
    assert set(held) < {0, 1, 2, 3}, "what is damaged is not held, what was never written neither"
    for index in held:
        assert torch.equal(again.read(4, torch.tensor([index]))[0], STATES[index].mul(4).bfloat16())
    again.write(4, torch.arange(6), STATES * 4)
    again.write(1, torch.arange(6), STATES)
    assert again.holds(torch.arange(6))
    assert torch.equal(again.read(4, torch.arange(6)), STATES.mul(4).bfloat16())


def test_what_is_damaged_is_named(tmp_path, caplog):
    filled(tmp_path)
    DAMAGES["half zero"](tmp_path / "depth-1.states")
    again = ActivationStore({1, 4}, SHAPE, torch.bfloat16, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not again.holds(torch.arange(4))
    assert "depth-1.states" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "one bit", "half zero"])
def test_a_training_with_damaged_states_ends_as_without(
    decoder, tmp_path, train, validation, student, weights, assert_equal, damage
):
    """Its second run finds states of an earlier one, as after a kill in the second epoch."""
    cache = ActivationCache(tmp_path, byte_budget=10**9)
    first = student(decoder, 1, 3)
    fit(decoder, [first], train, validation, cache=cache)
    (states,) = tmp_path.rglob("depth-3.states")
    DAMAGES[damage](states)
    second = student(decoder, 1, 3)
    fit(decoder, [second], train, validation, cache=cache)
    assert_equal(weights(second), weights(first))
