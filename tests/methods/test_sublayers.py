"""Layers without a sublayer compute as if it had given zeros."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import THREE
from torch import nn

from streamline.engine.decoder import Decoder, submodule
from streamline.errors import ConfigError
from streamline.methods.sublayers import Sublayers, Unit, remove_sublayer
from streamline.modeling.modeling_layers import build, spec_of
from streamline.testing.models import tiny_model

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in THREE),
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
    left = remove_sublayer(decoder, 1, part)  # type: ignore[arg-type]
    found = decoder.run(left, entry.hidden, entry, 1)
    wanted = decoder.run(expected, entry.hidden, entry, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    whole = decoder.run(decoder.layers[1], entry.hidden, entry, 1)
    assert not torch.allclose(found, whole)


def n_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_both_sublayers_and_the_norms_they_share(family: str, changes: dict[str, Any]) -> None:
    decoder = Decoder(tiny_model(family, n_layers=1, **changes))
    layer = decoder.layers[0]
    remaining = [remove_sublayer(decoder, 0, "attention"), remove_sublayer(decoder, 0, "mlp")]
    after = not getattr(decoder.config, "do_layer_norm_before", True)
    residual = getattr(decoder.config, "apply_residual_connection_post_layernorm", False)
    one_norm = family == "falcon" and not changes
    norms = [m for m in layer.modules() if type(m).__name__.endswith(("Norm",))]
    kept_twice = norms if after or residual or one_norm else []
    twice = sum(map(n_parameters, kept_twice))
    assert sum(map(n_parameters, remaining)) == n_parameters(layer) + twice
    assert {id(p) for left in remaining for p in left.parameters()} == {
        id(p) for p in layer.parameters()
    }


def test_spec_makes_the_same_shape_again(tiny_opt) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_opt(n_layers=2))
    for part in ("attention", "mlp"):
        left = remove_sublayer(decoder, 0, part)  # type: ignore[arg-type]
        again = build(spec_of(left), decoder.config, copy.deepcopy(decoder.layers[1]))
        assert again.state_dict().keys() == left.state_dict().keys()


def test_unknown_sublayer(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match='"attention" or its "mlp", got \'norm\''):
        remove_sublayer(Decoder(tiny_llama(n_layers=1)), 0, "norm")  # type: ignore[arg-type]


def test_a_layer_without_both_sublayers_is_gone(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    gone: list[Unit] = [(1, "mlp"), (2, "attention"), (1, "attention")]
    pruned = Sublayers(decoder).pruned(gone, {})
    assert [(s.layer, s.kind) for s in pruned.plan.steps] == [
        (0, "layer"),
        (2, "no-attention"),
        (3, "layer"),
    ]
    assert pruned.plan.removed_layers == [1]
    assert pruned.plan.kept_layers == [0, 3]
    layer = decoder.layers[0]
    attention = sum(p.numel() for p in layer.self_attn.parameters()) + 32
    assert Sublayers(decoder).n_removed(gone) == decoder.layer_parameters(0) + attention


def test_one_module_per_sublayer_so_that_paths_share_it(tiny_opt):
    sublayers = Sublayers(Decoder(tiny_opt(n_layers=3)))
    assert sublayers.layer_without((1, "mlp")) is sublayers.layer_without((1, "mlp"))
    assert sublayers.layer_without((1, "mlp")) is not sublayers.layer_without((1, "attention"))
    first, second = (sublayers.path([(1, "mlp"), extra]) for extra in ((2, "mlp"), (0, "mlp")))
    assert first.nodes[1].key == second.nodes[1].key


def test_a_unit_is_removed_only_if_it_brings_the_count_nearer(tiny_llama):
    sublayers = Sublayers(Decoder(tiny_llama(n_layers=3)))
    size = sublayers.n_removed([(0, "mlp")])
    assert sublayers.nearer([], (0, "mlp"), size)
    assert sublayers.nearer([], (0, "mlp"), 0.51 * size)
    assert not sublayers.nearer([], (0, "mlp"), 0.5 * size)
    assert not sublayers.nearer([(1, "mlp")], (0, "mlp"), size)
