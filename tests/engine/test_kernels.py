from __future__ import annotations

import pytest
import torch
from torch import nn

from streamline.engine import kernels as cpu_linear
from streamline.engine.decoder import Decoder
from streamline.engine.kernels import FastLinears, FusedNorms, fast
from streamline.testing.models import tiny_model


def model_of(*, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 40, bias=bias), nn.ReLU(), nn.Linear(40, 24))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_the_same_products(bias: bool, rows: int) -> None:
    model = model_of(bias=bias)
    inputs = torch.randn(1, rows, 24)
    wanted = model(inputs)
    fast = FastLinears([model], model)
    assert len(fast._forwards) == 2
    with fast.active():
        assert "forward" in model[0].__dict__
        torch.testing.assert_close(model(inputs), wanted, rtol=1e-5, atol=1e-5)
    assert "forward" not in model[0].__dict__


def test_a_shared_weight_is_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    model.append(nn.Linear(24, 40))
    model[3].weight = model[0].weight
    forwards = FastLinears([model, model[0]], model)._forwards
    assert len(forwards) == 3
    packed = {id(forward.__closure__[1].cell_contents) for _, forward in forwards.values()}  # type: ignore[attr-defined]
    assert len(packed) == 2


def test_what_is_not_plain_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(Other(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64))
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    assert not FastLinears([model], model)._forwards
    monkeypatch.setattr(cpu_linear, "LARGEST_COPY", 100)
    assert not FastLinears([model_of()], model_of())._forwards


def test_the_forwards_come_back_after_an_error() -> None:
    model = model_of()
    with pytest.raises(RuntimeError, match="stop"), FastLinears([model], model).active():
        raise RuntimeError("stop")
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize(
    ("family", "norms"), [("llama", 4), ("qwen3", 8), ("gemma2", 0), ("opt", 0)]
)
@torch.inference_mode()
def test_norms_that_are_just_that_are_fused(family: str, norms: int) -> None:
    decoder = Decoder(tiny_model(family, n_layers=2))
    ids = torch.arange(20)[None]
    wanted = decoder.logits(ids)
    fused = FusedNorms(decoder.layers)
    assert len(fused._forwards) == norms
    with fused.active():
        torch.testing.assert_close(decoder.logits(ids), wanted, rtol=1e-5, atol=1e-5)
    assert all("forward" not in part.__dict__ for part in decoder.model.modules())
    assert isinstance(fast(decoder.layers, decoder.model), FastLinears)


def test_a_fused_norm_is_no_further_from_float32() -> None:
    model = tiny_model("llama", n_layers=1)
    norm = Decoder(model).layers[0].input_layernorm
    states = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.copy_(norm.weight.bfloat16())
        states = states.bfloat16().float()
        exact, norm = norm(states), norm.bfloat16()
        plain = (norm(states.bfloat16()) - exact).abs().mean()
        with FusedNorms([norm]).active():
            fused = (norm(states.bfloat16()) - exact).abs().mean()
            other = norm(states)  # another format is left to the norm itself
    assert fused < plain and other.dtype == torch.float32
