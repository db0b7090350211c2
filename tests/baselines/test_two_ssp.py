from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from streamline.baselines import two_ssp
from streamline.baselines.two_ssp import TwoSSP, channel_scores, widest
from streamline.checkpoints import checkpoint
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.methods.loss import path_losses
from streamline.testing.models import tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(8))
FAMILIES = ["llama", "opt", "gpt2", "gpt_neox", "falcon", "bloom", "gemma2"]


def pruned(model, sparsity=0.25, **fields):
    decoder, method = Decoder(model), TwoSSP(**fields)
    return method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)


def test_the_budget_is_the_papers_arithmetic_on_llama2_7b():
    """By hand: an MLP has 135,266,304 parameters, an attention 67,108,864, a layer 202,383,360."""
    decoder = Decoder.from_config(LlamaConfig(intermediate_size=11008))
    for share, attentions in ((0.25, 5), (0.375, 9), (0.5, 13)):
        wanted = round(32 * share ** (135_266_304 / 67_108_864 / 1.5))
        assert wanted == attentions
        found = TwoSSP().budget(decoder, share * 32 * 202_383_360 / 6_738_415_616)
        assert found.attentions == attentions
        left = share * 32 * 202_383_360 - attentions * (67_108_864 + 4096)
        assert found.channels == round(left / (32 * 3 * 4096))
    assert TwoSSP(power=3.0).budget(decoder, 0.25).attentions > 5
    assert TwoSSP().budget(decoder, 0.0).removed == 0
    size = TwoSSP().size(decoder, 0.25)
    assert abs(size.removed_fraction - 0.25) < 32 * 3 * 4096 / 6_738_415_616


@pytest.mark.parametrize("sparsity", [0.9, 0.97])
def test_what_both_stages_cannot_remove_is_refused(sparsity):
    decoder = Decoder(tiny_model("llama", n_layers=3))
    with pytest.raises(UnsupportedModelError, match="cannot be reached by 2ssp: .* choose a lower"):
        TwoSSP().size(decoder, sparsity)


def test_attentions_larger_than_the_share_are_refused():
    decoder = Decoder(tiny_model("llama", n_layers=12))
    with pytest.raises(UnsupportedModelError, match="choose a higher sparsity, or another power"):
        TwoSSP(power=100.0).size(decoder, 0.02)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_scores_are_the_mean_norm_of_what_enters_the_last_projection(family):
    decoder = Decoder(tiny_model(family, n_layers=2))
    before = snapshot(decoder.model)
    found = channel_scores(decoder, TOKENS, batch_tokens=24)
    assert not differences(before, snapshot(decoder.model))
    for index, layer in enumerate(decoder.layers):
        seen = []
        last = submodule(layer, decoder.family.mlp_out)
        hook = last.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for row in TOKENS:
                decoder.model(row[None])
        hook.remove()
        norms = [states.reshape(12, -1).square().sum(0).sqrt() for states in seen]
        true = sum(norms) / len(norms)
        torch.testing.assert_close(found[index].float(), true, rtol=1e-4, atol=1e-6)
    assert widest(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]]), 1) == [[0, 2], [1, 2]]


def test_channels_that_do_nothing_go_first_and_nothing_changes():
    model = tiny_model("llama", n_layers=3)
    decoder = Decoder(model)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.mlp.up_proj.weight[10:30] = 0.0
    method = TwoSSP(power=0.05)  # so small that no attention goes
    sparsity = 3 * 20 * 3 * 32 / decoder.n_parameters()
    assert method.budget(decoder, sparsity) == two_ssp.Budget(0, 20, 3 * 20 * 3 * 32)
    result = method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)
    with torch.no_grad():
        torch.testing.assert_close(result.model(TOKENS).logits, model(TOKENS).logits)
    assert result.model.model.layers[0].mlp.up_proj.weight.shape == (44, 32)


def test_attentions_go_greedily_by_the_loss_of_the_narrowed_model():
    decoder = Decoder(tiny_model("llama", n_layers=4))
    result = pruned(decoder.model, 0.3, search_samples=2, power=4.0)
    order = result.notes["order"]
    assert len(order) >= 2
    kept = widest(channel_scores(decoder, TOKENS), result.notes["removed_channels"])
    layers = [two_ssp.shrink(decoder, i, {"mlp": keep}) for i, keep in enumerate(kept)]
    gone: list[int] = []
    for found in order:
        trials = [i for i in range(4) if i not in gone]
        paths = [
            two_ssp._path(decoder, layers, two_ssp._without_attention(decoder, layers, [*gone, i]))
            for i in trials
        ]
        losses = path_losses(paths, TOKENS[:2])
        gone.append(trials[losses.index(min(losses))])
        assert found == gone[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_count_is_exact_and_a_checkpoint_says_the_same(family, tmp_path):
    model = tiny_model(family, n_layers=4)
    before = snapshot(model)
    result = pruned(model, 0.25, power=4.0)
    assert not differences(before, snapshot(model))
    held = sum(p.numel() for p in result.model.parameters())
    assert TwoSSP(power=4.0).size(Decoder(model), 0.25).pruned == held
    assert result.notes["removed_attentions"] and result.notes["removed_channels"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    mask = torch.ones_like(TOKENS)
    cached, plain = (
        result.model.generate(TOKENS, attention_mask=mask, use_cache=use, **options)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    checkpoint.save(result, Decoder(model), None, tmp_path / "saved", {}, verify=False)
    loaded, _, _ = checkpoint.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, result.model(TOKENS).logits)
