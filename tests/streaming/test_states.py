"""The store of waiting states: what comes out is what went in, within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamline.streaming.states import StateStore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [0, 500, 1 << 20])
def test_states_come_back(dtype: torch.dtype, budget: int, tmp_path: Path) -> None:
    states = [torch.randn(2, 3, 8).to(dtype) for _ in range(9)]
    with StateStore(budget, tmp_path) as store:
        for key, state in enumerate(states):
            store.put(key, state, uses=2)
        for _ in range(2):
            for key, state in enumerate(states):
                assert torch.equal(store.take(key), state)
        assert len(store) == 0 and store.n_bytes == 0
        assert store.peak_bytes <= budget
        assert (store.file_bytes == 0) == (budget == 1 << 20)


def test_places_in_the_file_are_used_again(tmp_path: Path) -> None:
    with StateStore(0, tmp_path) as store:
        for key in range(50):
            store.put(key, torch.full((16,), float(key)))
            if key:
                assert store.take(key - 1)[0] == key - 1
        assert store.file_bytes == 2 * 16 * 4


def test_the_file_has_no_name(tmp_path: Path) -> None:
    """So that nothing is left even where the process is killed."""
    store = StateStore(0, tmp_path / "scratch")
    store.put("a", torch.zeros(100))
    assert store.file_bytes == 400
    assert list((tmp_path / "scratch").iterdir()) == []
    assert store.take("a").sum() == 0
    store.close()


def test_a_view_and_an_empty_state(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    with StateStore(0, tmp_path) as store:
        store.put("columns", whole[:, 1:3])
        store.put("empty", torch.zeros(0, 4))
        assert torch.equal(store.take("columns"), whole[:, 1:3])
        assert store.take("empty").shape == (0, 4)
