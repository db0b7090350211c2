from __future__ import annotations

import pytest
import torch

from streamline.baselines.shortened_llama import ShortenedLlamaPPL
from streamline.baselines.sleb import SLEB
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.methods.loss import path_losses
from streamline.plan import Plan

TOKENS = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(2))


def brute_force(decoder: Decoder, n_remove: int) -> list[int]:
    """Greedy without any sharing: every candidate is a plan of its own, first and last kept."""
    removed: list[int] = []
    for _ in range(n_remove):
        alive = [i for i in range(decoder.n_layers) if i not in removed]
        losses = {}
        for layer in alive[1:-1]:
            plan = Plan.drop(decoder.n_layers, [*removed, layer])
            losses[layer] = path_losses([Pruned(plan).path(decoder)], TOKENS)[0]
        removed.append(min(losses, key=lambda layer: losses[layer]))
    return removed


def test_equals_brute_force_greedy(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=6))
        rounds = SLEB().search(decoder, TOKENS, 4)
        assert [r.unit for r in rounds] == brute_force(decoder, 4)


def test_first_pick_is_that_of_shortened_llama_ppl(tiny_llama):
    for seed in range(4):
        decoder = Decoder(tiny_llama(n_layers=6, seed=seed))
        alone = ShortenedLlamaPPL(plus=True, keep_first=1, keep_last=1)
        pick = alone.order(alone.calibrate(decoder, TOKENS))[0]
        sleb = SLEB()
        calibration = sleb.calibrate(decoder, TOKENS)
        assert calibration.extras["rounds"][0, 0] == pick
        anywhere = SLEB(keep_first=0, keep_last=0).search(decoder, TOKENS, 1)
        free = ShortenedLlamaPPL()
        assert anywhere[0].unit == free.order(free.calibrate(decoder, TOKENS))[0]


def test_pruning_resumes_where_calibration_stopped(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=6))
    results = []
    for fraction in (0.0, 0.3, 1.0):
        method = SLEB(search_share=fraction)
        calibration = method.calibrate(decoder, TOKENS)
        results.append(method.prune(decoder, calibration, 0.33, TOKENS, 0))
    assert results[0].plan == results[1].plan == results[2].plan
    assert results[0].notes == results[1].notes == results[2].notes
    assert len(results[0].plan.removed_layers) == 3


def test_the_ends_go_only_when_nothing_else_is_left(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    order = [r.unit for r in SLEB().search(decoder, TOKENS, 4)]
    assert set(order[:2]) == {1, 2} and set(order[2:]) == {0, 3}


def test_cost_is_counted_beside_the_naive_cost(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=5))
    (first,) = SLEB(keep_first=0, keep_last=0).search(decoder, TOKENS, 1)
    assert first.naive_layer_runs == 6 * 5 * 4
    assert first.layer_runs == 6 * (4 + 4 + 3 + 2 + 1)


def test_a_fraction_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="search_share=1.5 of sleb is not accepted: .* 1"):
        SLEB(search_share=1.5)
