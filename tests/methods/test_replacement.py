"""Replacements: shapes, starts and counts."""

from __future__ import annotations

import pytest
import torch
from families import THREE
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnknownNameError
from streamline.methods.replacement import (
    INITS,
    KINDS,
    PREFIXES,
    added_parameters,
    make,
    set_linear,
)
from streamline.modeling.modeling_layers import FFN
from streamline.plan import Span
from streamline.testing.models import tiny_config, tiny_model

SPAN = Span(1, 4)
ALL_KINDS = [prefix + kind for prefix in ("", *PREFIXES) for kind in KINDS]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A tiny Llama of six layers."""
    return Decoder(tiny_model("llama"))


def hidden() -> Tensor:
    """Hidden states, [2, 5, 32]."""
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))


def linear() -> tuple[Tensor, Tensor]:
    """A random map of the right size."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(32, 32, generator=generator), torch.randn(32, generator=generator)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("family", THREE)
@torch.no_grad()
def test_runs_in_a_layers_place_and_counts(family: str, kind: str) -> None:
    model = tiny_model(family, n_layers=4)
    dense = Decoder(model)
    module = make(kind, dense, SPAN, init=INITS[kind.split("-")[-1]][0])
    entry = dense.enter(torch.arange(6)[None])
    output = dense.run(module, entry.hidden, entry, SPAN.start)
    assert output.shape == entry.hidden.shape
    assert not torch.allclose(output, entry.hidden)
    counted = Decoder.from_config(tiny_config(family, n_layers=4))
    added = added_parameters(kind, counted)(len(SPAN))
    assert added == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_is_trainable_float32_without_shared_tensors(kind: str) -> None:
    model = tiny_model("llama").to(torch.bfloat16).requires_grad_(False)
    module = make(kind, Decoder(model), SPAN, init=INITS[kind.split("-")[-1]][0])
    assert all(p.dtype == torch.float32 and p.requires_grad for p in module.parameters())
    assert not {p.data_ptr() for p in module.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("kind", ["ffn", "swiglu", "linear", "layer"])
def test_seed_decides_and_global_state_stays(decoder: Decoder, kind: str) -> None:
    before = torch.random.get_rng_state()
    a, b, c = (make(kind, decoder, SPAN, init="random", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", THREE)
def test_layer_inherits_first_last_or_mean(family: str) -> None:
    dense = Decoder(tiny_model(family))
    layers = [dict(layer.named_parameters()) for layer in dense.layers]
    first, last, mean = (
        dict(make("layer", dense, SPAN, init=init).named_parameters())
        for init in ("first", "last", "mean")
    )
    for name in layers[0]:
        assert torch.equal(first[name], layers[1][name])
        assert torch.equal(last[name], layers[3][name])
        expected = torch.stack([layers[i][name] for i in SPAN.layers]).mean(0)
        torch.testing.assert_close(mean[name], expected)


@pytest.mark.parametrize("family", THREE)
def test_random_layer_is_drawn_by_the_models_own_rule(family: str) -> None:
    model = tiny_model(family)
    for name, parameter in make("layer", Decoder(model), SPAN, init="random").named_parameters():
        if parameter.dim() == 2:
            assert abs(parameter.std().item() / 0.02 - 1) < 0.1
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert torch.equal(parameter, torch.full_like(parameter, parameter[0].item()))


@pytest.mark.parametrize("kind", ["ffn", "mlp", "linear"])
@torch.no_grad()
def test_linear_start_is_exact(decoder: Decoder, kind: str) -> None:
    weight, bias = linear()
    module = make(kind, decoder, SPAN, init="linear", linear=(weight, bias))
    expected = hidden() @ weight.T + bias
    torch.testing.assert_close(module(hidden()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_linear_start_with_residual_is_exact(decoder: Decoder) -> None:
    weight, bias = linear()
    module = make("ffn", decoder, SPAN, init="linear", residual=True, linear=(weight, bias))
    expected = hidden() @ weight.T + bias
    torch.testing.assert_close(module(hidden()), expected, rtol=1e-5, atol=1e-5)


def test_spare_units_of_a_linear_start_can_learn(decoder: Decoder) -> None:
    module = make("ffn", decoder, SPAN, init="linear", linear=linear())
    assert isinstance(module, FFN)
    module(hidden()).square().sum().backward()
    spare = module.fc2.weight.grad
    assert spare is not None and spare[:, 64:].abs().sum() > 0


@pytest.mark.parametrize("kind", ["ffn", "mlp", "linear", "multiple-ffn", "shared-linear"])
@torch.no_grad()
def test_identity_start(decoder: Decoder, kind: str) -> None:
    module = make(kind, decoder, SPAN, init="identity")
    torch.testing.assert_close(module(hidden()), hidden())


@pytest.mark.parametrize("kind", ["ffn", "mlp", "swiglu", "shared-ffn", "multiple-swiglu"])
@torch.no_grad()
def test_residual_form_starts_as_the_identity(decoder: Decoder, kind: str) -> None:
    module = make(kind, decoder, SPAN, residual=True)
    assert torch.equal(module(hidden()), hidden())
    assert any(p.any() for p in module.parameters())


@torch.no_grad()
def test_shared_form_applies_one_network_per_layer(decoder: Decoder) -> None:
    one = make("ffn", decoder, SPAN, seed=5)
    shared = make("shared-ffn", decoder, SPAN, seed=5)
    torch.testing.assert_close(shared(hidden()), one(one(one(hidden()))))


def test_multiple_form_has_a_layer_of_its_own_for_each(decoder: Decoder) -> None:
    module = make("multiple-layer", decoder, SPAN, init="first")
    for part, index in zip(module.parts, SPAN.layers, strict=True):  # type: ignore[call-overload]
        weight = decoder.layers[index].get_parameter("mlp.up_proj.weight")
        assert torch.equal(part.mlp.up_proj.weight, weight)


def test_llama2_7b_ffn_has_the_papers_size() -> None:
    config = tiny_config("llama", n_layers=1, hidden_size=4096, num_attention_heads=32)
    counted = Decoder.from_config(config)
    assert added_parameters("ffn", counted)(9) == 8 * 4096**2 + 5 * 4096
    assert added_parameters("mlp", counted)(9) == 4 * 4096**2 + 3 * 4096
    assert added_parameters("ffn", counted)(0) == 0


@pytest.mark.parametrize("kind", ["mlpp", "shared-", "both-ffn"])
def test_unknown_kind(decoder: Decoder, kind: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown kind of replacement '{kind}'.*swiglu"):
        make(kind, decoder, SPAN)
    with pytest.raises(UnknownNameError, match="unknown kind of replacement"):
        added_parameters(kind, decoder)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("swiglu", {"init": "linear"}, "swiglu cannot start from init='linear'; choose random"),
        ("ffn", {"init": "first"}, "ffn cannot start from init='first'; choose random, linear"),
        ("layer", {"residual": True, "init": "first"}, "layer has no residual form"),
        ("linear", {"residual": True}, "linear has no residual form"),
        ("ffn", {"init": "linear"}, "needs linear="),
        ("mlp", {"init": "weighted"}, 'init="weighted" needs linear='),
        (
            "shared-ffn",
            {"init": "linear", "linear": (torch.eye(32), torch.zeros(32))},
            'shared-ffn over 3 layers cannot start from one map; use "ffn"',
        ),
        (
            "ffn",
            {"init": "linear", "linear": (torch.eye(3), torch.zeros(3))},
            r"linear must be \(W \[32, 32\], b \[32\]\), got \[3, 3\]",
        ),
    ],
)
def test_starts_that_do_not_go_together(
    decoder: Decoder,
    kind: str,
    options: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(kind, decoder, SPAN, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("span", [Span(2, 2), Span(4, 7)])
def test_span_must_fit(decoder: Decoder, span: Span) -> None:
    with pytest.raises(ConfigError, match="a replacement needs a span of 1 to 6 layers"):
        make("ffn", decoder, span)


def test_a_narrow_ffn_cannot_hold_a_linear_map() -> None:
    with pytest.raises(ConfigError, match="width of 8 or more; this one has relu and width 7"):
        set_linear(FFN(4, 7), torch.eye(4), torch.zeros(4))
