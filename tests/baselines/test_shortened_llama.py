from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamline.baselines.shortened_llama import (
    ShortenedLlamaMagnitude,
    ShortenedLlamaPPL,
    ShortenedLlamaTaylor,
    layer_weights,
    taylor_scores,
)
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (10, 16), generator=torch.Generator().manual_seed(2))


def test_ppl_scores_are_the_losses_of_models_without_one_layer(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=5))
        calibration = ShortenedLlamaPPL().calibrate(decoder, TOKENS)
        with torch.no_grad():
            naive = [
                float(assemble(Pruned(Plan.drop(5, [i])).path(decoder))(TOKENS, labels=TOKENS).loss)
                for i in range(5)
            ]
        assert calibration.extras["scores"].tolist() == pytest.approx(naive, abs=1e-5)
        notes = ShortenedLlamaPPL().prune(decoder, calibration, 0.3, TOKENS, 0).notes
        assert notes["naive_layer_runs"] == 10 * 5 * 4
        assert notes["layer_runs"] == 10 * (4 + 4 + 3 + 2 + 1)


def test_taylor_scores_equal_a_finite_difference(tiny_llama, tiny_opt):
    tokens = TOKENS[:2, :6]
    small = {"hidden_size": 4, "num_attention_heads": 2}
    llama = tiny_llama(**small, n_layers=2, intermediate_size=4, num_key_value_heads=1)
    opt = tiny_opt(**small, n_layers=1, ffn_dim=4, word_embed_proj_dim=4)
    for model in (llama.double(), opt.double()):
        decoder = Decoder(model)

        def loss(model: torch.nn.Module = model) -> float:
            logits = model(tokens).logits[:, :-1]
            return float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            )

        expected = [0.0] * decoder.n_layers
        step = 1e-4
        with torch.no_grad():
            for index in range(decoder.n_layers):
                for weight in layer_weights(decoder, index):
                    flat = weight.view(-1)
                    for place in range(len(flat)):
                        value = float(flat[place])
                        flat[place] = value + step
                        above = loss()
                        flat[place] = value - step
                        below = loss()
                        flat[place] = value
                        expected[index] += abs(value * (above - below) / (2 * step))
        assert min(expected) > 1e-3
        assert taylor_scores(decoder, tokens) == pytest.approx(expected, rel=1e-3)


def test_taylor_leaves_gradients_flags_and_hooks_alone(tiny_opt):
    model = tiny_opt(n_layers=3)
    first, second = list(model.parameters())[:2]
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    before = snapshot(model)
    scores = taylor_scores(Decoder(model), TOKENS)
    assert differences(before, snapshot(model)) == []
    assert torch.equal(second.grad, torch.ones_like(second))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert all(score > 0 for score in scores)
    second.grad = None


def test_a_layer_without_effect_goes_first_by_taylor(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    with torch.no_grad():
        for parameter in decoder.layers[1].parameters():
            parameter.zero_()
    for method in (ShortenedLlamaTaylor(plus=False), ShortenedLlamaMagnitude(plus=False)):
        calibration = method.calibrate(decoder, TOKENS)
        assert method.select(calibration, 1).removed_layers == [1]


def test_magnitude_sums_absolute_weights_without_biases(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=3))
    naive = [
        sum(p.abs().sum().item() for name, p in layer.named_parameters() if "weight" in name)
        for layer in decoder.layers
    ]
    scores = ShortenedLlamaMagnitude().calibrate(decoder, TOKENS).extras["scores"]
    assert scores.tolist() == pytest.approx(naive, rel=1e-5)


def test_plus_keeps_the_ends_until_nothing_else_is_left(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    method = ShortenedLlamaMagnitude(keep_first=2, keep_last=1)
    calibration = method.calibrate(decoder, TOKENS)
    rising = replace(calibration, extras={"scores": torch.arange(6).double()})
    assert method.order(rising) == [2, 3, 4, 0, 1, 5]
    assert replace(method, plus=False).order(rising) == [0, 1, 2, 3, 4, 5]


def test_fields_that_change_the_scores_change_the_key():
    keys = {
        ShortenedLlamaPPL().calibration_key(),
        ShortenedLlamaPPL(n_samples=5).calibration_key(),
        ShortenedLlamaTaylor().calibration_key(),
        ShortenedLlamaMagnitude().calibration_key(),
    }
    assert len(keys) == 4
    assert ShortenedLlamaPPL(plus=True).calibration_key() in keys
