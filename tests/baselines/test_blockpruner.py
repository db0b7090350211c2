from __future__ import annotations

import math

import pytest
import torch

from streamline.baselines.blockpruner import BlockPruner
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.methods.loss import path_losses
from streamline.methods.sublayers import Sublayers, Unit
from streamline.testing.models import tiny_model

TOKENS = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(8))


def prune(decoder: Decoder, method: BlockPruner, sparsity: float) -> Pruned:
    return method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)


def test_first_unit_is_the_one_whose_loss_without_it_is_lowest():
    for family in ("llama", "opt"):
        decoder = Decoder(tiny_model(family, n_layers=3))
        sublayers = Sublayers(decoder)
        losses = path_losses([sublayers.path([unit]) for unit in sublayers.units], TOKENS)
        best = sublayers.units[losses.index(min(losses))]
        rounds, last = BlockPruner().search(sublayers, TOKENS, 12_000)
        assert sublayers.units[rounds[0].unit] == best
        assert rounds[0].loss == pytest.approx(min(losses), abs=1e-6)
        assert len(last) == len(sublayers.units)


def test_greedy_against_brute_force(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=3))
    sublayers = Sublayers(decoder)
    rounds, _ = BlockPruner().search(sublayers, TOKENS, 20_000)
    gone: list[Unit] = []
    for found in BlockPruner.removed(sublayers, rounds, 20_000):
        trials = [u for u in sublayers.units if u not in gone]
        losses = [path_losses([Sublayers(decoder).path([*gone, u])], TOKENS)[0] for u in trials]
        gone.append(trials[losses.index(min(losses))])
        assert sublayers.units[found.unit] == gone[-1]
    assert len(gone) >= 3


def test_count_is_the_nearest_in_the_order_of_removal(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    sublayers = Sublayers(decoder)
    for sparsity in (0.1, 0.2, 0.33):
        pruned = prune(decoder, BlockPruner(), sparsity)
        order = [tuple(unit) for unit in pruned.notes["order"]]
        target = sparsity * decoder.n_parameters()
        removed = sublayers.n_removed(order)
        assert pruned.n_parameters(decoder) == decoder.n_parameters() - removed
        assert abs(removed - target) < abs(sublayers.n_removed(order[:-1]) - target)
        smallest = min(sublayers.n_removed([unit]) for unit in sublayers.units)
        biggest = max(sublayers.n_removed([unit]) for unit in sublayers.units)
        assert abs(removed - target) <= biggest / 2 + smallest / 2
        assert 0 < pruned.notes["layer_runs"] < pruned.notes["naive_layer_runs"]


def test_a_unit_without_effect_goes_first(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=3))
        dense = path_losses([Sublayers(decoder).path([])], TOKENS)[0]
        with torch.no_grad():
            for parameter in submodule(decoder.layers[1], decoder.family.mlp_out).parameters():
                parameter.zero_()
        sublayers = Sublayers(decoder)
        silent = path_losses([sublayers.path([]), sublayers.path([(1, "mlp")])], TOKENS)
        assert silent[0] == pytest.approx(silent[1], abs=1e-6)
        assert not math.isclose(silent[0], dense, abs_tol=1e-4)


def test_pruning_resumes_where_calibration_stopped(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=4))
    fractions = (0.0, 0.1, 0.4)
    found = [prune(decoder, BlockPruner(search_share=s), 0.3) for s in fractions]
    assert found[0].plan == found[1].plan == found[2].plan
    assert found[0].notes["order"] == found[2].notes["order"]
    narrow = [prune(decoder, BlockPruner(search_share=s, width=2), 0.3) for s in fractions[:2]]
    assert narrow[0].notes == narrow[1].notes


def test_a_narrow_search_tries_fewer(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    wide = prune(decoder, BlockPruner(), 0.25).notes
    narrow = prune(decoder, BlockPruner(width=2), 0.25).notes
    assert narrow["order"][0] == wide["order"][0]
    assert narrow["naive_layer_runs"] < wide["naive_layer_runs"]
    with pytest.raises(ConfigError, match="width=0 of blockpruner is not accepted: .* 1"):
        BlockPruner(width=0)
