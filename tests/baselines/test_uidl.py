from __future__ import annotations

import math

import torch

from streamline.baselines.uidl import UIDL
from streamline.calibration import measure
from streamline.engine.decoder import Decoder, submodule


def test_run_of_least_angle_at_the_last_token_against_a_naive_count(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=5))
        tokens = torch.randint(0, 256, (4, 9), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            states = [h[:, -1].double() for _, h in decoder.trace(decoder.enter(tokens))]
        for n in (1, 2, 4):
            angles = []
            for start in range(5 - n + 1):
                pair = zip(states[start], states[start + n], strict=True)
                found = [math.acos(float(x @ y / (x.norm() * y.norm()))) / math.pi for x, y in pair]
                angles.append(sum(found) / len(found))
            best = min(range(len(angles)), key=lambda i: angles[i])
            calibration = measure(decoder, tokens)
            plan = UIDL().select(calibration, n)
            assert plan.removed_layers == list(range(best, best + n))
            measured = torch.tensor(UIDL().explain(calibration, n)["angles"])
            assert torch.allclose(measured, torch.tensor(angles), atol=1e-3)


def test_removes_a_no_op_layer_first_even_the_very_first(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=4))
    for path in (decoder.family.o, decoder.family.mlp_out):
        with torch.no_grad():
            for parameter in submodule(decoder.layers[0], path).parameters():
                parameter.zero_()
    tokens = torch.arange(24).view(3, 8)
    assert UIDL().select(measure(decoder, tokens), 1).removed_layers == [0]
