from __future__ import annotations

import pytest
import torch

from streamline.baselines.dense import Dense
from streamline.baselines.first_layers import FirstLayers
from streamline.baselines.last_layers import LastLayers
from streamline.baselines.random_layers import RandomLayers
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError

TOKENS = torch.arange(16).view(2, 8)


def flat(n_layers: int) -> Calibration:
    """A calibration without a measure of the layers."""
    square = torch.zeros(n_layers + 1, n_layers + 1, dtype=torch.float64)
    return Calibration(square, square, 16, 2)


def test_dense_keeps_everything_at_any_sparsity(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=3))
    pruned = Dense().prune(decoder, flat(3), 0.5, TOKENS, seed=0)
    assert pruned.plan.is_dense
    assert pruned.n_parameters(decoder) == decoder.n_parameters()
    assert Dense().size(decoder, 0.5).removed_fraction == 0.0
    with pytest.raises(ConfigError, match="at least 0 and below 1, got 1.5"):
        Dense().prune(decoder, flat(3), 1.5, TOKENS, seed=0)


def test_last_layers_keeps_the_last_one_until_none_else_is_left():
    assert LastLayers().select(flat(6), 2).removed_layers == [3, 4]
    assert LastLayers().select(flat(6), 5).removed_layers == [0, 1, 2, 3, 4]
    assert LastLayers().select(flat(6), 6).removed_layers == [0, 1, 2, 3, 4, 5]


def test_first_layers_removes_the_first():
    assert FirstLayers().select(flat(6), 2).removed_layers == [0, 1]


def test_random_layers_follow_the_seed_and_nest(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=6))
    state = torch.get_rng_state()

    def removed(sparsity: float, seed: int, draw: int = 0) -> list[int]:
        pruned = RandomLayers(draw=draw).prune(decoder, flat(6), sparsity, TOKENS, seed)
        return pruned.plan.removed_layers

    assert torch.equal(state, torch.get_rng_state())
    assert removed(0.3, 1) == removed(0.3, 1)
    assert len({tuple(removed(0.3, seed)) for seed in range(20)}) > 5
    assert len({tuple(removed(0.3, 0, draw)) for draw in range(20)}) > 5
    assert set(removed(0.2, 3)) < set(removed(0.5, 3))
    assert removed(0.0, 3) == []


def test_every_layer_is_drawn_about_equally_often(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=6))
    counts = [0] * 6
    for seed in range(300):
        pruned = RandomLayers().prune(decoder, flat(6), 0.22, TOKENS, seed)
        for layer in pruned.plan.removed_layers:
            counts[layer] += 1
    mean = sum(counts) / 6
    assert all(abs(count - mean) < 0.35 * mean for count in counts)
