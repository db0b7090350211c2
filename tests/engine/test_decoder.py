"""Entering, walking and leaving is the model itself, for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from streamline.engine.decoder import Decoder, count_parameters
from streamline.engine.families import FAMILIES
from streamline.errors import UnsupportedModelError
from streamline.testing.models import tiny_config, tiny_model

TYPES = [kind for family in FAMILIES for kind in family.model_types]
VARIANTS = [
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("opt", {"_remove_final_layer_norm": True}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"parallel_attn": False}),
    ("falcon", {"alibi": True}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gemma2", {"sliding_window": 4}),
    ("mistral", {"sliding_window": 4}),
]


def ids(rows: int = 2, length: int = 10) -> Tensor:
    """Random tokens, [rows, length]."""
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """The decoder's logits are the model's, with and without padding."""
    decoder, tokens = Decoder(model), ids()
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    torch.testing.assert_close(decoder.logits(tokens), model(tokens).logits, rtol=0, atol=1e-5)
    padded = model(tokens, attention_mask=mask).logits
    found = decoder.logits(tokens, mask)
    torch.testing.assert_close(found[mask.bool()], padded[mask.bool()], rtol=0, atol=1e-5)
    assert not torch.allclose(padded[0, -1], model(tokens).logits[0, -1])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", TYPES)
def test_logits_equal_the_models_own(family: str, tied: bool) -> None:
    check(tiny_model(family, n_layers=4, tied=tied))


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_logits_of_unusual_shapes(family: str, changes: dict[str, object]) -> None:
    check(tiny_model(family, n_layers=4, **changes))


@pytest.mark.parametrize("family", [kind for f in FAMILIES if f.tree for kind in f.model_types])
@torch.no_grad()
def test_tree_mask_equals_separate_sequences(family: str) -> None:
    model = tiny_model(family, n_layers=4)
    decoder = Decoder(model)
    context, a, b = ids()[:1, :5], ids()[:1, 5:8], ids()[1:, :2]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6]])
    allowed = torch.tril(torch.ones(10, 10, dtype=torch.bool))
    allowed[8:, 5:8] = False
    mask = torch.zeros(1, 1, 10, 10).masked_fill(~allowed, torch.finfo(torch.float32).min)
    entry = decoder.enter(torch.cat([context, a, b], dim=1), mask, positions)
    hidden = entry.hidden
    for index, layer in enumerate(decoder.layers):
        hidden = decoder.run(layer, hidden, entry, index)
    logits = decoder.leave(hidden)
    first = model(torch.cat([context, a], dim=1)).logits
    second = model(torch.cat([context, b], dim=1)).logits
    torch.testing.assert_close(logits[:, :8], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:, 8:], second[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", TYPES)
def test_entering_restores_the_layers(family: str) -> None:
    decoder = Decoder(tiny_model(family, n_layers=3))
    decoder.enter(ids())
    assert all("forward" not in layer.__dict__ for layer in decoder.layers)


def test_entering_restores_the_layers_after_an_error(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_llama(n_layers=3))
    with pytest.raises(IndexError):
        decoder.enter(torch.full((1, 4), 10_000))
    assert all("forward" not in layer.__dict__ for layer in decoder.layers)


@torch.no_grad()
def test_leaving_a_part_is_a_part_of_leaving(tiny_opt) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_opt(n_layers=2))
    *_, (_, hidden) = decoder.trace(decoder.enter(ids()))
    part = decoder.leave(hidden[:, [2, 7]])
    torch.testing.assert_close(part, decoder.leave(hidden)[:, [2, 7]])


@torch.no_grad()
def test_trace_gives_raw_outputs_at_every_depth(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    model = tiny_llama(n_layers=3)
    decoder = Decoder(model)
    states = dict(decoder.trace(decoder.enter(ids())))
    expected = model(ids(), output_hidden_states=True).hidden_states
    assert list(states) == [0, 1, 2, 3]
    for depth in range(3):
        torch.testing.assert_close(states[depth], expected[depth])
    torch.testing.assert_close(model.model.norm(states[3]), expected[3])
    assert [d for d, _ in decoder.trace(decoder.enter(ids()), stop=1)] == [0, 1]


def test_unknown_family_is_refused(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    model = tiny_llama(n_layers=1)
    model.config.model_type = "mamba"
    with pytest.raises(UnsupportedModelError, match=r"'mamba' has no row.*llama"):
        Decoder(model)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", TYPES)
def test_counting_from_the_config_alone(family: str, tied: bool) -> None:
    config = tiny_config(family, n_layers=3, tied=tied)
    counted = Decoder.from_config(config)
    real = Decoder(tiny_model(family, n_layers=3, tied=tied))
    assert next(counted.model.parameters()).is_meta
    assert counted.n_parameters() == real.n_parameters() == real.model.num_parameters()
    shell = sum(p.numel() for p in counted.shell_parameters())
    layers = sum(counted.layer_parameters(i) for i in range(3))
    assert shell + layers == counted.n_parameters()


def test_tied_weights_count_once() -> None:
    config = tiny_config("llama", n_layers=1)
    untied = Decoder.from_config(config).n_parameters()
    tied = Decoder.from_config(tiny_config("llama", n_layers=1, tied=True)).n_parameters()
    assert untied - tied == config.vocab_size * config.hidden_size


def test_shared_modules_count_once() -> None:
    layer = torch.nn.Linear(3, 4)
    assert count_parameters([layer, torch.nn.Sequential(layer, torch.nn.Linear(4, 1))]) == 21


def test_properties() -> None:
    decoder = Decoder.from_config(LlamaConfig(**tiny_config("llama", n_layers=2).to_dict()))
    assert (decoder.n_layers, decoder.hidden_size, decoder.max_length) == (2, 32, 512)
    assert decoder.name == "llama"
    assert decoder.device.type == "meta"
