from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, OPTConfig

from streamline.baselines._sliced_shapes import sliced_parameters
from streamline.baselines._slicing import principal, slice_model, turned
from streamline.baselines.llm_pruner import LLMPruner
from streamline.baselines.slicegpt import SliceGPT
from streamline.calibration import measure
from streamline.checkpoints import checkpoint
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.modeling.modeling_narrow import SlicedLayer, UnitNorm
from streamline.testing.models import tiny_config, tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(3))
IDS = TOKENS[:2, :12]
FAMILIES = ["llama", "opt", "gpt_neox"]


def identity(moment):
    return torch.eye(len(moment), dtype=moment.dtype)


def random_turn(moment):
    return turned(principal, len(moment), torch.Generator().manual_seed(0))(moment)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def prune(method, model, sparsity=0.25, seed=0):
    decoder = Decoder(model)
    return method.prune(decoder, measure(decoder, TOKENS), sparsity, TOKENS, seed)


@pytest.mark.parametrize("basis", [identity, principal, random_turn])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_nothing_sliced_the_logits_are_the_dense_models(family, tied, basis):
    """Norm fusion alone, a full rotation by principal directions, and by random ones."""
    model = tiny_model(family, n_layers=3, tied=tied)
    before = snapshot(model)
    rotated = slice_model(Decoder(model), 32, TOKENS, basis)
    assert not differences(before, snapshot(model))
    gap = (logits(rotated, TOKENS) - logits(model, TOKENS)).abs().max()
    assert gap < 1e-4
    rotated.tie_weights()
    torch.testing.assert_close(logits(rotated, TOKENS), logits(model, TOKENS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_of_low_rank_is_sliced_without_loss(family):
    """Everything written to the residual lies in 24 of 32 directions: keeping 24 is exact."""
    model = tiny_model(family, n_layers=3)
    decoder = Decoder(model)
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(32, 24, generator=generator)).Q
    into = basis @ basis.T
    tables = [model.get_input_embeddings()]
    if decoder.family.positions:
        tables.append(submodule(model, decoder.family.positions))
    with torch.no_grad():
        for table in tables:
            table.weight.copy_(table.weight @ into)
        for layer in decoder.layers:
            for path in (decoder.family.o, decoder.family.mlp_out):
                linear = submodule(layer, path)
                linear.weight.copy_(into @ linear.weight)
                if linear.bias is not None:
                    linear.bias.copy_(into @ linear.bias)
    sliced = slice_model(decoder, 24, TOKENS, principal)
    torch.testing.assert_close(logits(sliced), logits(model), atol=2e-4, rtol=0)
    narrower = slice_model(decoder, 16, TOKENS, principal)
    assert (logits(narrower) - logits(model)).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_count_is_exact_and_the_model_generates(family, tmp_path):
    model = tiny_model(family, n_layers=4, tied=family in ("opt", "qwen2"))
    before = snapshot(model)
    method = SliceGPT()
    result = prune(method, model, 0.12)
    assert not differences(before, snapshot(model))
    held = sum(p.numel() for p in result.model.parameters())
    config = tiny_config(family, n_layers=4, tied=family in ("opt", "qwen2"))
    assert method.size(Decoder.from_config(config), 0.12).pruned == held
    assert result.notes["parameters"]["total"] == held < Decoder(model).n_parameters()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    mask = torch.ones_like(IDS)
    cached, plain = (
        result.model.generate(IDS, attention_mask=mask, use_cache=use, **options)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    checkpoint.save(result, Decoder(model), None, tmp_path / "saved", {}, verify=False)
    loaded, _, _ = checkpoint.load(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(result.model))


def test_fresh_processes_load_both_kinds(tmp_path):
    """Sliced and resized layers, with transformers and without this package."""
    model = tiny_model("opt", n_layers=3, tied=True)
    decoder = Decoder(model)
    pruner = LLMPruner(start=0, stop=3)
    for name, result in (
        ("sliced", prune(SliceGPT(), model, 0.15)),
        ("resized", pruner.prune(decoder, pruner.calibrate(decoder, TOKENS), 0.2, TOKENS, 0)),
    ):
        checkpoint.save(result, decoder, None, tmp_path / name, {}, verify=False)
    reports = checkpoint.verify(tmp_path / "sliced", tmp_path / "resized")
    assert [r["without_package"] for r in reports] == [True, True]


@pytest.mark.parametrize(
    ("width", "percent"), [(3272, 9.4), (3072, 15.3), (2864, 21.5), (2656, 27.5), (2456, 33.2)]
)
def test_counts_of_llama2_7b(llama2_7b, width, percent):
    """Slicing 20, 25, 30, 35 and 40 % of the width removes far less of the parameters."""
    removed = 1 - sliced_parameters(llama2_7b, width)["total"] / llama2_7b.n_parameters()
    assert 100 * removed == pytest.approx(percent, abs=0.06)


@pytest.fixture(scope="module")
def llama2_7b():
    return Decoder.from_config(LlamaConfig(intermediate_size=11008))


def test_a_quarter_of_llama2_7b_is_a_third_of_its_width(llama2_7b):
    width = SliceGPT().width(llama2_7b, 0.25)
    assert width % 8 == 0 and 1 - width / 4096 == pytest.approx(0.33, abs=0.01)
    size = SliceGPT().size(llama2_7b, 0.25)
    assert size.removed_fraction == pytest.approx(0.25, abs=0.001)


def test_a_small_tied_model_is_refused_with_the_arithmetic():
    config = OPTConfig(hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12)
    decoder = Decoder.from_config(config)
    dense = decoder.n_parameters()
    with pytest.raises(UnsupportedModelError, match="cannot remove 25.0% .* untied head 38,") as e:
        SliceGPT().size(decoder, 0.25)
    assert f"of {dense:,} parameters, which removes" in str(e.value)
    with pytest.raises(UnsupportedModelError, match=r"which adds \d+\.\d%"):
        SliceGPT(max_slicing=0.2).size(decoder, 0.05)
    assert sliced_parameters(decoder, 616)["total"] > dense
    with pytest.raises(UnsupportedModelError, match="set a smaller round_interval"):
        SliceGPT(round_interval=1000).size(decoder, 0.05)


def test_a_width_that_makes_the_model_grow_is_passed_over():
    """On a tiny tied OPT 24 of 32 directions cost more than all: 16 is the nearest that helps."""
    decoder = Decoder(tiny_model("opt", n_layers=4, tied=True))
    assert sliced_parameters(decoder, 24)["total"] > decoder.n_parameters()
    assert SliceGPT().width(decoder, 0.05) == 16


def test_the_seed_decides_the_orientation_alone():
    model = tiny_model("llama", n_layers=3)
    first, again, other = (prune(SliceGPT(), model, seed=s).model for s in (0, 0, 1))
    plain = prune(SliceGPT(orientation="pca"), model).model
    assert torch.equal(logits(first), logits(again))
    embeddings = [m.get_input_embeddings().weight for m in (first, other)]
    assert not torch.allclose(*embeddings, atol=1e-3)
    for turned_model in (first, other):
        torch.testing.assert_close(logits(turned_model), logits(plain), atol=1e-3, rtol=0)


def test_principal_directions_order_the_variance():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    states *= torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 0.5])
    q = principal(states.T @ states)
    variance = ((states @ q) ** 2).sum(0)
    assert torch.equal(variance, variance.sort(descending=True).values)
    torch.testing.assert_close(q.T @ q, torch.eye(6, dtype=torch.float64))
    assert int(q[:, 0].abs().argmax()) == 3


def test_the_norm_divides_by_the_dense_width_and_keeps_the_models_eps():
    model = tiny_model("llama", n_layers=2, rms_norm_eps=1e-3)
    sliced = prune(SliceGPT(), model).model
    norms = [m for m in sliced.modules() if isinstance(m, UnitNorm)]
    assert {(m.width, m.eps) for m in norms} == {(32, 1e-3)} and len(norms) == 5
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    want = x / (x.square().sum(-1, keepdim=True) / 32 + 1e-3).sqrt()
    torch.testing.assert_close(norms[0](x), want)
    assert all(isinstance(layer, SlicedLayer) for layer in Decoder(sliced).layers)


def test_bfloat16():
    model = tiny_model("opt", n_layers=3, tied=True)
    wide = logits(prune(SliceGPT(), model).model)
    result = prune(SliceGPT(), model.to(torch.bfloat16))
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    similarity = nn.functional.cosine_similarity(logits(result.model).float(), wide, dim=-1)
    assert similarity.mean() > 0.97


def test_residual_dropout_is_that_of_the_family():
    model = tiny_model("opt", n_layers=2)
    model.config.dropout = 0.5
    for layer in Decoder(model).layers:
        layer.dropout = 0.5
    sliced = prune(SliceGPT(), model).model
    assert {layer.description["dropout"] for layer in Decoder(sliced).layers} == {0.5}
    assert torch.equal(logits(sliced), logits(sliced))


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma2", {}, "norm with a scale of its own"),
        ("opt", {"do_layer_norm_before": False}, "has them after"),
        ("opt", {"word_embed_proj_dim": 16}, "projects them"),
        ("gpt2", {}, "the width of the embeddings"),
        ("bloom", {}, "slicegpt supports llama"),
    ],
)
def test_unsupported_models_give_the_reason(family, changes, reason):
    decoder = Decoder(tiny_model(family, n_layers=1, **changes))
    assert reason in SliceGPT().unsupported(decoder)


def test_zero_sparsity_is_the_dense_model():
    result = prune(SliceGPT(), tiny_model("llama", n_layers=2), 0.0)
    assert result.model is None and result.plan.is_dense
