from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from streamline.baselines._groups import Heads, layer_groups
from streamline.baselines._taylor import taylor_scores
from streamline.baselines.llm_pruner import LLMPruner, lowest, removed_parameters
from streamline.checkpoints import checkpoint
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.testing.models import tiny_config, tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(3))
IDS = TOKENS[:2, :12]
FAMILIES = ["llama", "gpt2", "gpt_neox"]
CRITERIA = ["param_first", "param_second", "param_mix", "vectorize", "l1", "l2"]


def silence(decoder: Decoder, layer: int, kind: str, group: int) -> None:
    """Zero everything that one group owns."""
    coupling = next(c for c in layer_groups(decoder, layer) if c.kind == kind)
    with torch.no_grad():
        for member in coupling.members:
            linear = submodule(decoder.layers[layer], member.path)
            owned = member.index[group]
            transposed = not isinstance(linear, nn.Linear)
            weight = linear.weight.T if transposed else linear.weight
            if member.side == "in":
                weight[:, owned] = 0.0
            else:
                weight[owned] = 0.0
                if linear.bias is not None:
                    linear.bias[owned] = 0.0


def pruned(model, sparsity=0.25, **fields):
    decoder, method = Decoder(model), LLMPruner(**fields)
    return method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_groups_go_first_and_nothing_changes(family, criterion):
    """One head and a few channels that do nothing are exactly what goes; no logit moves."""
    model = tiny_model(family, n_layers=3)
    decoder = Decoder(model)
    for layer in range(3):
        silence(decoder, layer, "attention", 1)
        silence(decoder, layer, "mlp", 5)
        for channel in range(8, 8 + 63):
            if channel < layer_groups(decoder, layer)[1].n_groups:
                silence(decoder, layer, "mlp", channel)
    measured = LLMPruner(importance=criterion).calibrate(decoder, TOKENS)
    scores = measured.extras
    passes = {"param_second": len(TOKENS), "param_mix": len(TOKENS) + 1, "l1": 0, "l2": 0}
    assert measured.facts.get("backward_passes", 0) == passes.get(criterion, 1)
    assert lowest(scores["attention"][2], 1) == [1]
    assert 5 in lowest(scores["mlp"][0], 10)
    assert float(scores["attention"][:, 1].max()) == 0.0 < float(scores["attention"][:, 0].min())
    method = LLMPruner(importance=criterion, start=0, stop=3)
    groups = Heads.of(decoder).groups
    sparsity = removed_parameters(method.couplings(decoder), 1 / groups) / decoder.n_parameters()
    result = method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)
    assert result.notes["removed_heads"] == {str(i): [1] for i in range(3)}
    assert result.notes["removed_channels"]["0"] >= 16
    with torch.no_grad():
        torch.testing.assert_close(
            result.model(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_count_is_exact_and_the_model_generates(family, tmp_path):
    model = tiny_model(family, n_layers=5)
    before = snapshot(model)
    result = pruned(model, 0.2)
    assert not differences(before, snapshot(model))
    held = sum(p.numel() for p in result.model.parameters())
    meta = Decoder.from_config(tiny_config(family, n_layers=5))
    assert LLMPruner().size(meta, 0.2).pruned == held < Decoder(model).n_parameters()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    mask = torch.ones_like(IDS)
    cached, plain = (
        result.model.generate(IDS, attention_mask=mask, use_cache=use, **options)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    checkpoint.save(result, Decoder(model), None, tmp_path / "saved", {}, verify=False)
    loaded, _, _ = checkpoint.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, result.model(IDS).logits)


def test_count_on_llama2_7b():
    """A fraction of 0.2 on layers 4 to 29 removes 15.30 % of all parameters, 6 of 32 heads."""
    decoder = Decoder.from_config(LlamaConfig(intermediate_size=11008))
    assert decoder.n_parameters() == 6_738_415_616
    couplings = LLMPruner().couplings(decoder)
    heads, channels = 6 * 128 * 4 * 4096, 2202 * 3 * 4096
    assert removed_parameters(couplings, 0.2) == 26 * (heads + channels) == 1_030_668_288
    released = removed_parameters(couplings, 0.25) / decoder.n_parameters()
    assert f"{released:.2%}" == "19.52%"  # as its README says of the same shape
    size = LLMPruner().size(decoder, 0.25)
    assert abs(size.removed_fraction - 0.25) < 0.5 * 202_383_360 / 6_738_415_616


def test_first_order_score_is_the_derivative_of_the_loss():
    """A channel with one weight in use: ``|w g|`` is what scaling it does to the loss."""
    model = tiny_model("opt", n_layers=2).double()
    decoder = Decoder(model)
    layer = decoder.layers[1]
    channel = 7
    with torch.no_grad():
        layer.fc2.weight[:, channel] = 0.0
        layer.fc2.weight[3, channel] = 0.2
        layer.fc1.weight[channel] = 0.0
        layer.fc1.bias[channel] = 0.5

    def loss(scale):
        with torch.no_grad():
            layer.fc2.weight[3, channel] = 0.2 * scale
            logits = decoder.logits(TOKENS)[:, :-1]
            layer.fc2.weight[3, channel] = 0.2
        return nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())

    slope = abs(float(loss(1.001) - loss(0.999)) / 0.002)
    # The one entry of fc2, and the bias of fc1 to the same effect, each score the slope.
    found = float(taylor_scores(decoder, TOKENS, "param_first")["mlp"][1, channel])
    assert found == pytest.approx(2 * slope, rel=1e-3)


def test_second_order_term_lowers_the_mixed_score():
    """Against the formula, with gradients from autograd."""
    model = tiny_model("llama", n_layers=2)
    decoder = Decoder(model)
    down = decoder.layers[0].mlp.down_proj.weight
    gate, up = (getattr(decoder.layers[0].mlp, n).weight for n in ("gate_proj", "up_proj"))

    def gradients(tokens):
        logits = model(tokens).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return torch.autograd.grad(loss, [gate, up, down])

    batch = gradients(TOKENS)
    single = [gradients(row) for row in TOKENS.split(1)]
    want, second = torch.zeros(64), torch.zeros(64)
    for i, (weight, gradient) in enumerate(zip((gate, up, down), batch, strict=True)):
        fisher = torch.stack([g[i] ** 2 for g in single]).mean(0)
        change = (weight * gradient - 0.5 * weight * fisher * weight).abs().detach()
        want += change.sum(0 if i == 2 else 1)
        second += (weight * fisher * weight).detach().sum(0 if i == 2 else 1)
    found = taylor_scores(decoder, TOKENS, "param_mix")["mlp"][0]
    torch.testing.assert_close(found.float(), want)
    found = taylor_scores(decoder, TOKENS, "param_second")["mlp"][0]
    torch.testing.assert_close(found.float(), second)


def test_magnitudes_are_those_of_what_a_group_owns():
    """A head's rows of q, k and v with their biases and its columns of o; a channel's likewise."""
    layer = (decoder := Decoder(tiny_model("opt", n_layers=1))).layers[0]
    own = slice(8, 16)
    attention = [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]
    head = [part[own] for linear in attention for part in (linear.weight, linear.bias)]
    head.append(layer.self_attn.out_proj.weight[:, own])
    channel = [layer.fc1.weight[5], layer.fc1.bias[5], layer.fc2.weight[:, 5]]
    for power in (1, 2):
        found = LLMPruner(importance=f"l{power}").calibrate(decoder, TOKENS).extras
        for kind, group, parts in (("attention", 1, head), ("mlp", 5, channel)):
            true = sum(float((part.detach().abs() ** power).sum()) for part in parts)
            assert float(found[kind][0, group]) == pytest.approx(true, rel=1e-5)


def test_random_groups_are_those_of_the_seed():
    decoder, method = Decoder(tiny_model("llama", n_layers=4)), LLMPruner(importance="random")
    calibration = method.calibrate(decoder, TOKENS)
    assert not calibration.extras

    def kept(seed):
        pruned = method.prune(decoder, calibration, 0.2, TOKENS, seed)
        return [layer.mlp.down_proj.weight[0].tolist() for layer in pruned.model.model.layers]

    assert kept(1) == kept(1) != kept(2)
    assert len(kept(1)[1]) == len(
        pruned(decoder.model, 0.2).model.model.layers[1].mlp.down_proj.weight[0]
    )


def test_layers_as_the_unit_leave_the_first_ones():
    model = tiny_model("gpt2", n_layers=5)
    result = pruned(model, 0.3, unit="layer")
    assert result.plan.removed_layers == [3, 4]
    with torch.no_grad():
        wanted = Decoder(model)
        wanted.layers = wanted.layers[:3]
        torch.testing.assert_close(result.model(IDS).logits, wanted.logits(IDS))
    held = sum(p.numel() for p in result.model.parameters())
    assert LLMPruner(unit="layer").size(Decoder(model), 0.3).pruned == held
    assert pruned(model, 0.0, unit="layer").plan.is_dense


def test_a_key_head_goes_with_its_own_query_heads():
    attention, _ = layer_groups(Decoder(tiny_model("llama", n_layers=1)), 0)
    by_path = {member.path: member.index for member in attention.members}
    assert by_path["self_attn.q_proj"][1].tolist() == list(range(16, 32))
    assert by_path["self_attn.k_proj"][1].tolist() == list(range(8, 16))
    assert by_path["self_attn.o_proj"][1].tolist() == list(range(16, 32))


def test_range_of_layers():
    assert LLMPruner().layers(32) == range(4, 30)
    assert LLMPruner().layers(30) == range(4, 28)
    assert LLMPruner(start=1, stop=3).layers(8) == range(1, 3)
    with pytest.raises(ConfigError, match=r"prunes layers \[3, 9\) of 8"):
        LLMPruner(start=3, stop=9).layers(8)


def test_what_lies_outside_the_range_is_shared_with_the_dense_model():
    model = tiny_model("llama", n_layers=4)
    result = pruned(model, 0.2, start=1, stop=3)
    first, second = (result.model.model.layers[i].mlp.up_proj.weight for i in (0, 1))
    assert first is model.model.layers[0].mlp.up_proj.weight
    assert second.shape[0] < 64


def test_out_of_reach_is_refused():
    with pytest.raises(
        UnsupportedModelError, match="one head and one channel left in each of layers"
    ):
        LLMPruner().size(Decoder(tiny_model("llama")), 0.9)


@pytest.mark.parametrize("family", ["falcon", "bloom"])
def test_unsupported_families_give_the_reason(family):
    reason = LLMPruner().unsupported(Decoder(tiny_model(family, n_layers=1)))
    assert "fused projection" in reason


def test_bfloat16_and_same_seed():
    model = tiny_model("llama", n_layers=3).to(torch.bfloat16)
    first, again = pruned(model), pruned(model)
    assert first.model.dtype == torch.bfloat16
    assert first.notes["removed_heads"] == again.notes["removed_heads"]
    with torch.no_grad():
        assert torch.equal(first.model(IDS).logits, again.model(IDS).logits)


def test_zero_sparsity_is_the_dense_model():
    result = pruned(tiny_model("llama", n_layers=3), 0.0)
    assert result.model is None and result.plan.is_dense
