"""Entering, running layers and leaving."""

from __future__ import annotations

import pytest
import torch
from families import THREE
from torch import Tensor
from transformers import LlamaConfig

from streamline.engine.decoder import Decoder, count_parameters
from streamline.errors import UnsupportedModelError
from streamline.testing.models import tiny_config, tiny_model


def ids(rows: int = 2, length: int = 10) -> Tensor:
    """Random tokens, [rows, length]."""
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", THREE)
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
