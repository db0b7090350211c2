"""LLM-Streamline's variants: which span goes, what comes in its place, what is counted."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from streamline.calibration import Calibration, measure
from streamline.checkpoints.checkpoint import load, save
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.errors import UnsupportedModelError
from streamline.methods.llm_streamline import (
    StreamlineFFN,
    StreamlineLayer,
    StreamlineNone,
    StreamlineSwiGLU,
)
from streamline.methods.loss import path_losses
from streamline.methods.spans import divided, ranked_spans
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Span
from streamline.registry import build_method
from streamline.testing.models import tiny_model
from streamline.testing.runner import check_method
from streamline.training.fit import fit
from streamline.training.student import Recipe

IDS = torch.randint(0, 256, (12, 16), generator=torch.Generator().manual_seed(5))
VARIANTS = [StreamlineNone, StreamlineFFN, StreamlineSwiGLU, StreamlineLayer]


@pytest.fixture(scope="module")
def llama2_7b() -> Decoder:
    return Decoder.from_config(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            tie_word_embeddings=False,
        )
    )


@pytest.mark.parametrize(
    ("method", "n_removed", "percent"),
    [
        (StreamlineNone(), 8, 24.03),
        (StreamlineFFN(), 9, 25.04),
        (StreamlineSwiGLU(), 9, 25.02),
        (StreamlineLayer(), 9, 24.03),
    ],
)
def test_llama2_7b_at_a_quarter_is_counted_exactly(llama2_7b, method, n_removed, percent):
    size = method.size(llama2_7b, 0.25)
    assert size.dense == 6_738_415_616
    assert size.n_removed == n_removed
    assert round(100 * size.removed_fraction, 2) == percent


def calibration(n_layers: int, best: Span) -> Calibration:
    """Statistics in which one span is the most similar of its length."""
    cosine = torch.full((n_layers + 1, n_layers + 1), 0.5, dtype=torch.float64)
    cosine[best.start, best.stop] = 0.9
    cosine[best.start + 1, best.stop + 1] = 0.8
    return Calibration(cosine, torch.zeros_like(cosine), 1, 1)


def test_none_drops_the_span_of_highest_cosine_and_names_the_runner_up():
    found = calibration(8, Span(2, 5))
    method = StreamlineNone()
    assert method.select(found, 3).removed_layers == [2, 3, 4]
    spans = method.explain(found, 3)["spans"]
    assert spans[:2] == [{"span": [2, 5], "cosine": 0.9}, {"span": [3, 6], "cosine": 0.8}]


def test_a_runner_up_can_be_chosen_instead():
    found = calibration(8, Span(2, 5))
    assert StreamlineNone(runner_up=1).select(found, 3).removed_layers == [3, 4, 5]
    with pytest.raises(UnsupportedModelError, match="runner_up=6 is too large: there are 6 spans"):
        StreamlineNone(runner_up=6).select(found, 3)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_count_from_the_config_is_the_count_of_the_model(family, variant):
    decoder = Decoder(tiny_model(family, n_layers=6))
    batches = torch.randint(0, 250, (2, 8))
    method = variant()
    pruned = method.prune(decoder, measure(decoder, batches), 0.3, batches, seed=0)
    assert pruned.n_parameters(decoder) == method.size(decoder, 0.3).pruned


@pytest.mark.parametrize("variant", VARIANTS)
def test_sparsity_zero_is_the_identity(variant):
    decoder = Decoder(tiny_model("llama", n_layers=4))
    batches = torch.randint(0, 250, (2, 8))
    pruned = variant().prune(decoder, measure(decoder, batches), 0.0, batches, seed=0)
    assert pruned.plan.is_dense
    assert pruned.students == []


def test_the_layer_starts_as_the_first_of_the_span():
    decoder = Decoder(tiny_model("llama", n_layers=6))
    batches = torch.randint(0, 250, (2, 8))
    pruned = StreamlineLayer().prune(decoder, measure(decoder, batches), 0.3, batches, seed=0)
    student = pruned.students[0]
    first = decoder.layers[student.span.start].state_dict()
    assert all(torch.equal(value, first[key]) for key, value in student.module.state_dict().items())
    assert student.module is pruned.modules[student.span.start]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_with_norm_and_residual_is_a_block_without_attention(dtype):
    model = tiny_model("llama", n_layers=6)
    model.model.layers[2].post_attention_layernorm.variance_epsilon = model.config.rms_norm_eps
    decoder = Decoder(model.to(dtype))
    method = build_method("llm-streamline-swiglu+norm=true+residual=true")
    assert repr(method) != repr(StreamlineSwiGLU())
    ids = torch.arange(16).reshape(2, 8)
    pruned = method.prune(decoder, calibration(6, Span(2, 4)), 0.2, ids, seed=0)
    assert method.size(decoder, 0.2).pruned == pruned.n_parameters(decoder)
    (network,) = pruned.modules.values()
    block = remove_sublayer(decoder, 2, "attention")
    names = {"norm.": "post_attention_layernorm.", "": "mlp."}
    weights = dict(block.named_parameters())
    for name, parameter in network.to(dtype).named_parameters():
        old, new = next(pair for pair in names.items() if name.startswith(pair[0]))
        parameter.data.copy_(weights[new + name.removeprefix(old)])
    hidden = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(network(hidden), block(hidden))


def test_swiglu_with_norm_and_residual_starts_as_the_identity_and_travels(tmp_path):
    decoder = Decoder(tiny_model("opt", n_layers=6))
    method = build_method("llm-streamline-swiglu+norm=true+residual=true")
    pruned = method.prune(decoder, calibration(6, Span(2, 4)), 0.2, torch.zeros(1, 4).long(), 0)
    ((start, network),) = pruned.modules.items()
    assert network.norm.eps == 1e-5
    hidden = torch.randn(1, 4, 32)
    assert torch.equal(network(hidden), hidden)
    network.down_proj.weight.data.normal_()
    folder = save(pruned, decoder, None, tmp_path / "c", {}, verify=False)
    again, _, _ = load(folder)
    assert torch.equal(again.model.decoder.layers[start](hidden), network(hidden))


def test_several_networks_stand_for_a_span_each_for_its_part(llama2_7b):
    """The authors' Llama-3.1-5.4B: two decoder layers for fourteen."""
    assert divided(Span(16, 30), 2) == [Span(16, 23), Span(23, 30)]
    assert divided(Span(3, 10), 3) == [Span(3, 6), Span(6, 8), Span(8, 10)]
    layer = 202_383_360
    size = StreamlineLayer(n_replacements=2).size(llama2_7b, 12 * layer / 6_738_415_616)
    assert (size.n_removed, size.dense - size.pruned) == (14, 12 * layer)
    size = StreamlineFFN(n_replacements=3).size(llama2_7b, 0.25)
    assert size.dense - size.pruned == size.n_removed * layer - 3 * 134_238_208


@pytest.mark.parametrize("kind", ["layer", "ffn"])
def test_each_of_several_networks_learns_its_own_part(kind, tmp_path):
    decoder = Decoder(tiny_model("llama", n_layers=8))
    method = build_method(f"llm-streamline-{kind}+n_replacements=2")
    found = measure(decoder, IDS)
    pruned = method.prune(decoder, found, 0.3, IDS, 0)
    first, second = pruned.students
    assert first.span.stop == second.span.start
    span, _ = found.ranked_spans(second.span.stop - first.span.start)[0]
    assert (first.span.start, second.span.stop) == (span.start, span.stop)
    assert method.size(decoder, 0.3).pruned == pruned.n_parameters(decoder)
    path = pruned.path(decoder)
    assert [node.layer for node in path.nodes[span.start : span.start + 2]] == [
        first.span.start, second.span.start,
    ]  # fmt: skip
    recipe = Recipe(epochs=8, batch_tokens=64, learning_rate=3e-3, validation_tokens=64)
    for student in pruned.students:
        student.apply(recipe)
    results = fit(decoder, pruned.students, IDS, IDS)
    assert [result.spans for result in results] == [
        [[student.span.start, student.span.stop]] for student in pruned.students
    ]
    assert all(result.best < result.before for result in results)
    save(pruned, decoder, None, tmp_path / "saved", {}, verify=False)
    loaded, _, _ = load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, assemble(pruned.path(decoder))(IDS).logits)


def test_a_network_with_a_share_of_nothing_stays_as_it_starts():
    """The closed form alone: nothing to train, frozen, in the model's dtype."""
    decoder = Decoder(tiny_model("llama").to(torch.bfloat16))
    found = measure(decoder, IDS)
    for init in ("linear", "weighted"):
        method = build_method(f"llm-streamline-ffn+init={init}+share=0")
        (fit_of,) = method.fits(decoder, found, 0.3)
        assert fit_of.weighted == (init == "weighted")
        pruned = method.prune(decoder, found, 0.3, IDS, 0)
        (module,) = pruned.modules.values()
        assert not pruned.students
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {
            (torch.bfloat16, False)
        }
        trained = StreamlineFFN(init=init).prune(decoder, found, 0.3, IDS, 0).students[0].module
        assert all(
            torch.equal(a, b.to(torch.bfloat16))
            for a, b in zip(module.parameters(), trained.parameters(), strict=True)
        )
        assert StreamlineFFN(init=init).trains and not method.trains
        outcomes = list(check_method(method, ["llama"]))
        assert [one for one in outcomes if one.status != "passed"] == []


def test_by_perplexity_the_span_that_costs_least_loss_goes():
    decoder = Decoder(tiny_model("llama", n_layers=6))
    found = measure(decoder, IDS)
    nodes = dense_path(decoder).nodes
    losses = path_losses([Path(decoder, (*nodes[:i], *nodes[i + 2 :])) for i in range(5)], IDS[:10])
    order = sorted(range(5), key=losses.__getitem__)
    sparsity = 2 * decoder.layer_parameters(0) / decoder.n_parameters()
    for runner_up in (0, 1):
        method = StreamlineNone(criterion="perplexity", runner_up=runner_up)
        pruned = method.prune(decoder, found, sparsity, IDS, 0)
        start = order[runner_up]
        assert pruned.plan.removed_layers == [start, start + 1]
    spans = pruned.notes["spans"]
    assert [entry["span"][0] for entry in spans] == order
    assert spans[0]["loss"] == pytest.approx(min(losses), abs=1e-5)
    other = StreamlineFFN(criterion="perplexity")
    n = other.n_remove(decoder, 0.3)
    made = other.prune(decoder, found, 0.3, IDS, 0)
    best = ranked_spans(decoder, found, IDS, n, "perplexity")[0].span
    assert made.students[0].span == best
    with pytest.raises(UnsupportedModelError, match="runner_up=9 is too large"):
        StreamlineNone(criterion="perplexity", runner_up=9).prune(decoder, found, sparsity, IDS, 0)
