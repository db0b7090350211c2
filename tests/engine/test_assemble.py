"""A path as a model of its own: shared weights, right numbering, generation with the cache."""

from __future__ import annotations

import pytest
import torch
from families import THREE
from torch import Tensor
from transformers import PreTrainedModel

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, dense_path
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Span
from streamline.testing.models import tiny_model

#: Windows shorter than the sequence, so that the two kinds of attention differ.
CHANGES: dict[str, dict[str, object]] = {"gemma2": {"sliding_window": 4}}


def tokens() -> tuple[Tensor, Tensor]:
    """Random tokens [2, 10] and a mask with padding on the left."""
    ids = torch.randint(0, 250, (2, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return ids, mask


def generate(model: PreTrainedModel, use_cache: bool) -> Tensor:
    """Eight tokens, greedily."""
    ids, mask = tokens()
    found: Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        use_cache=use_cache,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=256,
        eos_token_id=None,
    )
    return found


@torch.no_grad()
def check(path: Path) -> PreTrainedModel:
    """The assembled model computes the path, generates with a cache, and has its parameters."""
    decoder, model = path.decoder, assemble(path)
    ids, mask = tokens()
    entry = decoder.enter(ids, mask)
    hidden = entry.hidden
    for node in path.nodes:
        hidden = decoder.run(node.module, hidden, entry, node.layer)
    expected = decoder.leave(hidden)[mask.bool()]
    found = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(generate(model, True), generate(model, False))
    assert model.num_parameters() == path.n_parameters()
    return model


def tiny(family: str) -> Decoder:
    """A tiny model of six layers."""
    return Decoder(tiny_model(family, **CHANGES.get(family, {})))


def nodes(decoder: Decoder, *gone: int) -> list[Node]:
    """The dense layers but some."""
    return [Node(m, i) for i, m in enumerate(decoder.layers) if i not in gone]


@pytest.mark.parametrize("family", THREE)
def test_dropping_layers(family: str) -> None:
    decoder = tiny(family)
    model = check(Path(decoder, tuple(nodes(decoder, 0, 3))))
    assert model.config.num_hidden_layers == 4
    assert decoder.config.num_hidden_layers == 6


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("family", THREE)
def test_replacement_without_attention(family: str, start: int) -> None:
    decoder = tiny(family)
    span = Span(start, start + 2)
    path = nodes(decoder, *span.layers)
    path.insert(start, Node(make("ffn", decoder, span, init="identity"), start))
    check(Path(decoder, tuple(path)))


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("family", THREE)
def test_half_layers(family: str, part: str) -> None:
    decoder = tiny(family)
    path = nodes(decoder)
    for i in (0, 3):
        path[i] = Node(remove_sublayer(decoder, i, part), i)  # type: ignore[arg-type]
    check(Path(decoder, tuple(path)))


@pytest.mark.parametrize("family", THREE)
def test_shared_layers_get_a_cache_place_each(family: str) -> None:
    decoder = tiny(family)
    span = Span(1, 4)
    path = nodes(decoder, *span.layers)
    path.insert(1, Node(make("shared-layer", decoder, span, init="first"), 1))
    model = check(Path(decoder, tuple(path)))
    assert model.config.num_hidden_layers == 6
    assert model.num_parameters() == decoder.n_parameters() - 2 * decoder.layer_parameters(1)


def test_a_repeated_layer_is_two_layers_with_one_set_of_weights() -> None:
    decoder = tiny("llama")
    model = check(Path(decoder, tuple(Node(decoder.layers[i], i) for i in (0, 1, 1, 2))))
    first, second = model.model.layers[1:3]
    assert first is not second
    assert first.mlp.up_proj.weight is second.mlp.up_proj.weight
    assert (first.self_attn.layer_idx, second.self_attn.layer_idx) == (1, 2)


def test_alternating_attention_keeps_its_types() -> None:
    decoder = tiny("gemma2")
    assert decoder.config.layer_types == ["sliding_attention", "full_attention"] * 3
    model = check(Path(decoder, tuple(nodes(decoder, 1, 2))))
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert model.config.layer_types == kinds
    assert len(decoder.config.layer_types) == 6
    unbalanced = check(Path(decoder, tuple(nodes(decoder, 0, 2, 4))))
    assert unbalanced.config.layer_types == ["full_attention"] * 3


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_shared_and_modules_are_not(tied: bool) -> None:
    model = tiny_model("llama", tied=tied)
    dense = Decoder(model)
    made = assemble(Path(dense, tuple(nodes(dense, 2))))
    ours = {p.data_ptr() for p in made.parameters()}
    theirs = {p.data_ptr() for p in model.parameters()}
    assert ours < theirs
    assert not {id(m) for m in made.modules()} & {id(m) for m in model.modules()}
    assert (made.lm_head.weight is made.model.embed_tokens.weight) is tied
    assert [m.self_attn.layer_idx for m in model.model.layers] == list(range(6))


@torch.no_grad()
def test_dense_path_is_the_model() -> None:
    decoder = tiny("qwen3")
    made = assemble(dense_path(decoder))
    ids, _ = tokens()
    assert torch.equal(made(ids).logits, decoder.model(ids).logits)
    assert made.config.to_dict() == decoder.config.to_dict()


def test_replacements_keep_the_familys_manners() -> None:
    decoder = tiny("falcon")
    ffn = make("ffn", decoder, Span(1, 2))
    output = ffn(torch.zeros(1, 2, 32))
    assert isinstance(output, tuple) and output[0].shape == (1, 2, 32)
    assert isinstance(make("ffn", tiny("llama"), Span(1, 2))(torch.zeros(1, 2, 32)), Tensor)
