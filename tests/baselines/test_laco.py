from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamline.baselines._collapsing import Collapse, Merge, collapse, merge_layers
from streamline.baselines.laco import LaCo, LaCoRelease
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.method import Pruned

TOKENS = torch.randint(0, 256, (5, 20), generator=torch.Generator().manual_seed(4))


def prune(decoder: Decoder, method: LaCo, sparsity: float) -> Pruned:
    return method.prune(decoder, method.calibrate(decoder, TOKENS), sparsity, TOKENS, 0)


def test_merging_nothing_is_the_identity(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=4))
        for rule in ("paper", "release"):
            merged = merge_layers(decoder, decoder.layers[1:2], rule)
            for old, new in zip(decoder.layers[1].parameters(), merged.parameters(), strict=True):
                assert old is not new and torch.equal(old, new)
        trials = Collapse(decoder, TOKENS, "paper")
        bounds = {"layers_per_merge": 1, "interval": 1, "lowest": 0, "highest": 4}
        assert collapse(trials, 2, threshold=-1.0, **bounds).merges == ()
        assert trials.similarity((), Merge(2, 0)) == pytest.approx(1.0, abs=1e-6)
        assert prune(decoder, LaCo(), 0.0).plan.is_dense


def test_paper_rule_sums_differences_to_the_first_layer(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=4))
    a, b, c = decoder.layers[1:4]
    merged = merge_layers(decoder, [a, b, c], "paper")
    for name in ("fc1", "self_attn.q_proj"):
        one, two, three = (layer.get_submodule(name) for layer in (a, b, c))
        found = merged.get_submodule(name)
        assert torch.allclose(found.weight, two.weight + three.weight - one.weight, atol=1e-6)
        assert torch.allclose(found.bias, two.bias + three.bias - one.bias, atol=1e-6)
    assert torch.equal(merged.final_layer_norm.weight, a.final_layer_norm.weight)
    assert torch.equal(merged.self_attn_layer_norm.bias, a.self_attn_layer_norm.bias)


def test_rules_agree_for_two_layers_and_differ_for_more(tiny_llama, tiny_qwen3):
    for factory in (tiny_llama, tiny_qwen3):
        decoder = Decoder(factory(n_layers=4))
        for count, equal in ((2, True), (3, False), (4, False)):
            layers = decoder.layers[:count]
            paper = merge_layers(decoder, layers, "paper").mlp.up_proj.weight
            release = merge_layers(decoder, layers, "release").mlp.up_proj.weight
            assert torch.allclose(paper, release, atol=1e-6) == equal
            assert torch.allclose(release, layers[-1].mlp.up_proj.weight, atol=1e-6)


def test_similarity_is_that_of_the_assembled_models(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=6))
        trials = Collapse(decoder, TOKENS, "paper")
        merges = (Merge(3, 1), Merge(1, 2))
        assert [b.span.layers for b in trials.blocks(merges)] == [[0], [1, 2, 3, 4], [5]]
        found = trials.similarity(merges[:1], merges[1])

        module = merge_layers(
            decoder,
            [
                decoder.layers[1],
                decoder.layers[2],
                merge_layers(decoder, decoder.layers[3:5], "paper"),
            ],
            "paper",
        )
        pruned = prune(decoder, LaCo(layers_per_merge=3), 0.0)
        plan = replace(pruned.plan, steps=tuple(pruned.plan.steps[i] for i in (0, 1, 5)))
        nodes = list(Pruned(plan).path(decoder).nodes)
        nodes[1] = replace(nodes[1], module=module)
        model = assemble(replace(Pruned(plan).path(decoder), nodes=tuple(nodes)))
        with torch.no_grad():
            short = model(TOKENS, output_hidden_states=True).hidden_states[-1].flatten(1)
            dense = decoder.model(TOKENS, output_hidden_states=True).hidden_states[-1].flatten(1)
        expected = torch.cosine_similarity(short, dense, dim=-1).mean().item()
        assert found == pytest.approx(expected, abs=1e-5)


def test_every_count_is_met_exactly(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    one_layer = decoder.layer_parameters(0) / decoder.n_parameters()
    for n in range(1, 8):
        pruned = prune(decoder, LaCo(), n * one_layer)
        assert len(pruned.plan.steps) == 8 - n
        assert pruned.n_parameters(decoder) == decoder.n_parameters() - n * (
            decoder.layer_parameters(0)
        )
        covered = [
            layer
            for step in pruned.plan.steps
            for layer in ([step.layer] if step.span is None else step.span.layers)
        ]
        assert covered == list(range(8))
        assert sum(m["n_folded"] for m in pruned.notes["merges"]) == n


def test_threshold_is_the_highest_that_meets_the_count(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=8))
    trials = Collapse(decoder, TOKENS, "paper")
    outcome = LaCo(layers_per_merge=3, interval=1, choose="wanted").search(trials, 3)
    bounds = {"layers_per_merge": 3, "interval": 1, "lowest": 1, "highest": 7}
    above = collapse(trials, 3, threshold=outcome.threshold + 1e-5, **bounds)
    assert outcome.n_removed == 3 and above.n_removed < 3
    assert min(outcome.similarities) > outcome.threshold


def test_the_most_similar_combination_is_used(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    trials = Collapse(decoder, TOKENS, "paper")
    best = LaCo().search(trials, 3)
    alone = [
        LaCo(layers_per_merge=c, interval=i, choose="wanted").search(trials, 3)
        for c, i in ((4, 2), (4, 1), (3, 1), (2, 1))
    ]
    assert best.similarities[-1] == max(outcome.similarities[-1] for outcome in alone)
    assert best in alone


def test_no_op_layers_are_folded_at_full_similarity(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    with torch.no_grad():
        for index in (4, 5):
            for parameter in decoder.layers[index].parameters():
                parameter.zero_()
    trials = Collapse(decoder, TOKENS, "paper")
    assert trials.similarity((), Merge(4, 1)) == pytest.approx(1.0, abs=1e-5)
    assert trials.similarity((), Merge(5, 1)) < 0.999


def test_trials_cost_less_than_running_both_models(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    notes = prune(decoder, LaCo(), 0.2).notes
    assert 0 < notes["layer_runs"] < notes["naive_layer_runs"]


def test_the_release_rule_gives_another_model_under_its_own_name(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    fields = {"layers_per_merge": 4, "choose": "wanted"}
    paper, release = (prune(decoder, m(**fields), 0.3) for m in (LaCo, LaCoRelease))
    logits = [assemble(p.path(decoder))(TOKENS).logits for p in (paper, release)]
    assert not torch.allclose(*logits, atol=1e-2)
    assert LaCoRelease().name == "laco-release" and LaCoRelease().rule == "release"


def test_what_cannot_be_merged_is_refused(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    with pytest.raises(
        UnsupportedModelError, match="layers_per_merge=1 cannot remove 1 of 4 layers"
    ):
        prune(decoder, LaCo(layers_per_merge=1), 0.15)
    with pytest.raises(ConfigError, match="layers_per_merge=0 of laco is not accepted"):
        LaCo(layers_per_merge=0)
