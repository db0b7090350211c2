from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.engine.model_state import ModelState
from streamline.testing.models import tiny_model


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(tiny_model("llama", n_layers=3))


def _weight(decoder: Decoder) -> nn.Parameter:
    found: nn.Parameter = decoder.layers[1].get_parameter("mlp.up_proj.weight")
    return found


def test_a_model_that_is_run_is_as_it_was(decoder: Decoder) -> None:
    state = ModelState(decoder)
    decoder.logits(torch.arange(8)[None])
    assert state.changes() == state.traces() == []
    assert state.written() == set()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda d: _weight(d).requires_grad_(False), "the gradient of model.layers.1"),
        (lambda d: _weight(d).sum().backward(), "the gradient of model.layers.1"),
        (lambda d: _weight(d).register_hook(lambda grad: grad), "the hooks of model.layers.1"),
        (lambda d: d.layers.pop(), "the list of layers"),
        (lambda d: d.layers[0].train(), "the training mode of model.layers.0"),
        (lambda d: setattr(d.model, "lm_head", nn.Linear(32, 8)), "the modules of the model"),
        (lambda d: setattr(d.layers[0], "__class__", nn.Identity), "the class of model.layers.0"),
        (lambda d: setattr(d.config, "extra", 1), "the config"),
        (lambda d: torch.set_default_dtype(torch.float64), "torch's default dtype"),
        (lambda d: setattr(_weight(d), "data", _weight(d).data.clone()), "the weight model"),
    ],
)
def test_each_change_is_named_and_put_back(
    decoder: Decoder, change: Callable[[Decoder], object], name: str
) -> None:
    before = decoder.logits(torch.arange(8)[None])
    state = ModelState(decoder)
    change(decoder)
    assert [found for found in state.changes() if found.startswith(name)]
    state.restore()
    assert state.changes() == []
    assert torch.equal(decoder.logits(torch.arange(8)[None]), before)


def test_an_attribute_is_put_back_and_no_fault(decoder: Decoder) -> None:
    state = ModelState(decoder)
    attention = decoder.layers[0].get_submodule("self_attn")
    scaling = attention.scaling
    attention.scaling, attention.memory = 2.0, []  # type: ignore[assignment]
    assert state.changes() == []
    assert len(state.traces()) == 2
    state.restore()
    assert attention.scaling == scaling
    assert not hasattr(attention, "memory")


@pytest.mark.parametrize("index", [(0, 0), (3, slice(None)), (slice(None), 5)])
def test_a_row_a_column_and_the_first_value_are_seen_past_the_count_of_writes(
    decoder: Decoder, index: tuple[int | slice, int | slice]
) -> None:
    state = ModelState(decoder)
    _weight(decoder).data[index] = 7.0
    assert state.written() == {"model.layers.1.mlp.up_proj.weight"}


def test_a_large_tensor_is_looked_at_in_every_row_and_column() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=1, hidden_size=64, intermediate_size=512))
    weight = decoder.layers[0].get_parameter("mlp.up_proj.weight").data
    assert weight.numel() > 4096
    for index in ((400, slice(None)), (slice(None), 33)):
        state = ModelState(decoder)
        weight[index] += 1.0
        assert len(state.written()) == 1


def test_values_that_were_written_over_are_filled_in_again(decoder: Decoder) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    original = _weight(decoder).detach().clone()
    state = ModelState(decoder)
    with torch.no_grad():
        _weight(decoder).mul_(2.0)
    assert state.written() == {name}
    assert state.refill(name, original)
    assert torch.equal(_weight(decoder), original)
    assert state.changes() == []


def test_values_that_were_put_back_by_whoever_wrote_them_are_the_same(decoder: Decoder) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    original = _weight(decoder).detach().clone()
    state = ModelState(decoder)
    _scaled_and_back(_weight(decoder))
    assert state.written() == {name}
    assert not state.refill(name, original)
    assert state.changes() == []


@torch.no_grad()
def _scaled_and_back(weight: Tensor) -> None:
    weight.mul_(2.0)
    weight.mul_(0.5)
