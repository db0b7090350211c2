from __future__ import annotations

import torch

from streamline.baselines.shortgpt import ShortGPT
from streamline.calibration import Calibration, measure
from streamline.engine.decoder import Decoder, submodule
from streamline.plan import Plan


def make_no_op(decoder: Decoder, layer: int) -> None:
    """Zero what a layer writes to the residual stream."""
    with torch.no_grad():
        for path in (decoder.family.o, decoder.family.mlp_out):
            for parameter in submodule(decoder.layers[layer], path).parameters():
                parameter.zero_()


def test_removes_a_no_op_layer_first_and_leaves_the_logits_alone(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=5))
        make_no_op(decoder, 2)
        tokens = torch.arange(32).view(2, 16)
        calibration = measure(decoder, tokens)
        assert abs(calibration.influence[2]) < 1e-6
        plan = ShortGPT().select(calibration, 1)
        assert plan == Plan.drop(5, [2])
        pruned = ShortGPT().prune(decoder, calibration, 0.15, tokens, seed=0)
        assert 2 in pruned.plan.removed_layers


def test_score_is_one_minus_the_mean_cosine_of_input_and_output(tiny_opt):
    model = tiny_opt(n_layers=4)
    decoder = Decoder(model)
    tokens = torch.arange(24).view(3, 8)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
        for layer in decoder.layers
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    naive = [
        1 - torch.cosine_similarity(x.double(), y.double(), dim=-1).mean().item() for x, y in seen
    ]
    calibration = measure(decoder, tokens)
    assert torch.allclose(calibration.influence, torch.tensor(naive).double(), atol=1e-6)
    expected = sorted(range(4), key=lambda i: naive[i])[:2]
    assert ShortGPT().select(calibration, 2).removed_layers == sorted(expected)
    facts = ShortGPT().explain(calibration, 2)
    assert facts["order"][:2] == expected


def test_of_equal_scores_the_deeper_layer_is_removed():
    cosine = torch.ones(5, 5, dtype=torch.float64)
    calibration = Calibration(cosine, torch.zeros(5, 5).double(), 8, 1)
    assert ShortGPT().select(calibration, 2).removed_layers == [2, 3]
