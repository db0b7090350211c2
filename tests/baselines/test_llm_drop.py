from __future__ import annotations

import pytest
import torch

from streamline.baselines.llm_drop import LLMDrop, sublayer_cosines
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.testing.models import tiny_model

TOKENS = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_cosines_across_each_sublayer_against_hooks(family):
    decoder = Decoder(tiny_model(family, n_layers=3))
    names = (decoder.family.attention, decoder.family.mlp_out)
    caught: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for index, layer in enumerate(decoder.layers):
        for name in names:

            def catch(module, args, output, key=(index, name)):
                caught[key] = output[0] if isinstance(output, tuple) else output

            hooks.append(submodule(layer, name).register_forward_hook(catch))
    with torch.no_grad():
        states = [h.double() for _, h in decoder.trace(decoder.enter(TOKENS))]
    for hook in hooks:
        hook.remove()
    found = sublayer_cosines(decoder, TOKENS, batch_tokens=30)
    for index in range(3):
        before = states[index]
        attention = caught[index, names[0]].double().reshape(before.shape)
        mlp = caught[index, names[1]].double().reshape(before.shape)
        middle = before if decoder.family.parallel else before + attention
        pairs = ((before, before + attention), (middle, middle + mlp))
        for sublayer, (x, y) in enumerate(pairs):
            naive = torch.cosine_similarity(x, y, dim=-1).mean().item()
            assert found[index, sublayer].item() == pytest.approx(naive, abs=1e-5)


def test_the_most_similar_units_go_until_the_count_is_met(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    method = LLMDrop()
    calibration = method.calibrate(decoder, TOKENS)
    order = method.order(calibration)
    cosines = [calibration.extras["cosines"][i, int(part == "mlp")].item() for i, part in order]
    assert cosines == sorted(cosines, reverse=True) and len(order) == 12
    pruned = method.prune(decoder, calibration, 0.25, TOKENS, 0)
    removed = decoder.n_parameters() - pruned.n_parameters(decoder)
    layer = decoder.layer_parameters(0)
    assert abs(removed - 0.25 * decoder.n_parameters()) < layer / 2


def test_one_kind_alone(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=6))
    for target in ("attention", "mlp"):
        method = LLMDrop(target=target)
        calibration = method.calibrate(decoder, TOKENS)
        pruned = method.prune(decoder, calibration, 0.1, TOKENS, 0)
        kinds = {step.kind for step in pruned.plan.steps}
        assert kinds == {"layer", f"no-{target}"}
        assert pruned.plan.removed_layers == []
        with pytest.raises(UnsupportedModelError, match="at most .* not 60.0%"):
            method.prune(decoder, calibration, 0.6, TOKENS, 0)


def test_a_unit_without_effect_goes_first(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    with torch.no_grad():
        decoder.layers[2].self_attn.o_proj.weight.zero_()
    method = LLMDrop()
    assert method.order(method.calibrate(decoder, TOKENS))[0] == (2, "attention")
