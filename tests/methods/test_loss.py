from __future__ import annotations

import pytest
import torch

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.methods.loss import loss_sample, path_losses, score_paths
from streamline.plan import Plan

TOKENS = torch.randint(0, 256, (5, 11), generator=torch.Generator().manual_seed(1))


def test_losses_are_those_of_the_models_one_by_one(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=4))
        paths = [Pruned(Plan.drop(4, gone)).path(decoder) for gone in ([], [1], [2], [1, 3])]
        found = score_paths(paths, TOKENS, batch_tokens=24)
        with torch.no_grad():
            naive = [float(assemble(path)(TOKENS, labels=TOKENS).loss) for path in paths]
        assert found.losses == pytest.approx(naive, abs=1e-5)
        assert found.n_tokens == 50
        assert found.naive_layer_runs == 5 * (4 + 3 + 3 + 2)
        # 0 1 2 3; without 1: 2 3; without 2: 3 behind 0 1; without 1 and 3: ends at 2
        assert found.layer_runs == 5 * (4 + 2 + 1)


def test_runs_are_counted_by_distinct_prefix(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    paths = [Pruned(Plan.drop(4, [i])).path(decoder) for i in range(4)]
    # without 3: 0 1 2; without 2: 3; without 1: 2 3; without 0: 1 2 3
    assert score_paths(paths, TOKENS).layer_runs == 5 * 9


def test_paths_of_two_models_in_one_call(tiny_llama):
    first, second = Decoder(tiny_llama(n_layers=2)), Decoder(tiny_llama(n_layers=2, seed=5))
    paths = [dense_path(first), dense_path(second), dense_path(first)]
    together = path_losses(paths, TOKENS)
    assert together == pytest.approx([path_losses([path], TOKENS)[0] for path in paths])
    assert together[0] == together[2] != together[1]


def test_nothing_to_predict_is_refused(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=2))
    with pytest.raises(ConfigError, match=r"at least 2 tokens, got a batch of \[5, 1\]"):
        path_losses([dense_path(decoder)], TOKENS[:, :1])
    with pytest.raises(ConfigError, match="got n_samples=0 and length=None"):
        loss_sample(TOKENS, 0, None)
    assert loss_sample(TOKENS, 2, 4).shape == (2, 4)
    assert loss_sample(TOKENS, None, None).shape == (5, 11)
    assert loss_sample(TOKENS, 100, 100).shape == (5, 11)
