"""Half layers: what is left computes as if the other half had given zeros."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.families import FAMILIES
from streamline.errors import ConfigError
from streamline.methods.sublayers import without
from streamline.modeling.modeling_layers import build, spec_of
from streamline.testing.models import tiny_model

CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for family in FAMILIES for kind in family.model_types),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"parallel_attn": False}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
]


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize(("family", "changes"), CASES)
@torch.no_grad()
def test_equals_zeroed_output_projection(family: str, changes: dict[str, Any], part: str) -> None:
    decoder = Decoder(tiny_model(family, n_layers=3, **changes))
    ids = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(1))
    entry = decoder.enter(ids)
    expected = copy.deepcopy(decoder.layers[1])
    out = decoder.family.o if part == "attention" else decoder.family.mlp_out
    for parameter in submodule(expected, out).parameters():
        parameter.zero_()
    half = without(decoder, 1, part)  # type: ignore[arg-type]
    found = decoder.run(half, entry.hidden, entry, 1)
    wanted = decoder.run(expected, entry.hidden, entry, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    whole = decoder.run(decoder.layers[1], entry.hidden, entry, 1)
    assert not torch.allclose(found, whole)


def n_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_two_halves_and_the_norms_they_share(family: str, changes: dict[str, Any]) -> None:
    decoder = Decoder(tiny_model(family, n_layers=1, **changes))
    layer = decoder.layers[0]
    halves = [without(decoder, 0, "attention"), without(decoder, 0, "mlp")]
    behind = not getattr(decoder.config, "do_layer_norm_before", True)
    residual = getattr(decoder.config, "apply_residual_connection_post_layernorm", False)
    one_norm = family == "falcon" and not changes
    norms = [m for m in layer.modules() if type(m).__name__.endswith(("Norm",))]
    kept_twice = norms if behind or residual or one_norm else []
    twice = sum(map(n_parameters, kept_twice))
    assert sum(map(n_parameters, halves)) == n_parameters(layer) + twice
    assert {id(p) for half in halves for p in half.parameters()} == {
        id(p) for p in layer.parameters()
    }


def test_spec_makes_the_same_shape_again(tiny_opt) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_opt(n_layers=2))
    for part in ("attention", "mlp"):
        half = without(decoder, 0, part)  # type: ignore[arg-type]
        again = build(spec_of(half), decoder.config, copy.deepcopy(decoder.layers[1]))
        assert again.state_dict().keys() == half.state_dict().keys()


def test_unknown_half(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match='"attention" or its "mlp", got \'norm\''):
        without(Decoder(tiny_llama(n_layers=1)), 0, "norm")  # type: ignore[arg-type]
