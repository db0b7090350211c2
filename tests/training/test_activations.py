from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.training.activations import ActivationCache, ActivationStore, teacher_pass


@pytest.fixture
def decoder(tiny_llama: Callable[..., nn.Module]) -> Decoder:
    return Decoder(tiny_llama(n_layers=5))


def tokens(n: int, length: int = 16) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(0))


def test_the_teacher_gives_the_wanted_depths_without_gradient(decoder: Decoder) -> None:
    ids, seen = tokens(2), {}
    teacher_pass(decoder, ids, decoder.enter(ids), {0, 3, 2}, seen.__setitem__)
    assert list(seen) == [0, 2, 3]
    with torch.no_grad():
        expected = decoder.model(ids, output_hidden_states=True).hidden_states
    for depth, hidden in seen.items():
        torch.testing.assert_close(hidden, expected[depth])
        assert not hidden.requires_grad and not hidden.is_inference()


@pytest.mark.parametrize("on_disk", [True, False])
def test_store_gives_back_what_it_rounds(tmp_path: Path, on_disk: bool) -> None:
    folder = tmp_path if on_disk else None
    store = ActivationStore({1, 4}, (6, 3, 8), torch.bfloat16, folder)
    indices = torch.tensor([4, 0])
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    store.write(1, indices, states)
    assert not store.holds(indices), "depth 4 is missing"
    store.write(4, indices, 2 * states)
    assert store.holds(indices)
    assert store.holds(torch.tensor([0]))
    assert not store.holds(torch.tensor([0, 1]))
    assert torch.equal(store.read(4, torch.tensor([0, 4])), (2 * states).bfloat16().flip(0))
    if on_disk:
        again = ActivationStore({1, 4}, (6, 3, 8), torch.bfloat16, folder)
        assert again.holds(indices)
        assert torch.equal(again.read(1, indices), store.round(states))


def test_cache_keeps_to_its_budget(tmp_path: Path) -> None:
    need = 2 * 6 * (3 * 8 * 2 + 8)
    cache = ActivationCache(tmp_path, byte_budget=need)
    assert cache.store("a" * 64, {1, 4}, (6, 3, 8)).depths == [1, 4]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) == need
    assert cache.store("a" * 64, {1, 4}, (6, 3, 8)).depths == [1, 4], "its own files do not count"
    full = cache.store("b" * 64, {1}, (6, 3, 8))
    assert full.depths == []
    assert not full.holds(torch.tensor([0]))
    full.write(1, torch.tensor([0]), torch.zeros(1, 3, 8))
    assert full.round(torch.zeros(1)).dtype == torch.bfloat16
    assert not (tmp_path / ("b" * 16)).exists()
