"""Adapters on a weight that comes and goes: the same as merged ones, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from streamline.checkpoints.streamed import write_weights
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model
from streamline.training.parts.changed import change


def factors(n_in: int, n_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_out)
    return (
        torch.randn(2, n_in, generator=generator),
        torch.randn(n_out, 2, generator=generator),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_changed_map_is_one_that_was_merged(kind: type, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = (nn.Linear(6, 4) if kind is nn.Linear else Conv1D(4, 6)).to(dtype)
    down, up = factors(6, 4)
    changed, merged = copy.deepcopy(plain), copy.deepcopy(plain)
    change(changed, down, up, 0.5)
    added = (up @ down) * 0.5
    added = added.T if kind is Conv1D else added
    merged.weight.data = (plain.weight.float() + added).to(dtype)
    hidden = torch.randn(2, 3, 6, dtype=dtype)
    assert torch.equal(changed(hidden), merged(hidden))
    assert not torch.equal(changed(hidden), plain(hidden))
    again = copy.deepcopy(changed)
    assert torch.equal(again(hidden), merged(hidden))
    assert torch.equal(again.merged(plain.weight), merged.weight)
    assert {n: p.shape for n, p in changed.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_has_merged_weights(family: str, tmp_path: Path) -> None:
    dense = tiny_model(family, n_layers=2)
    dense.save_pretrained(tmp_path / "dense")
    decoder = open_streamed(tmp_path / "dense", dense.config)
    with decoder.source:
        model = assemble(dense_path(decoder))
        name, module = next(
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and "1" in name
        )
        sides = dense.get_submodule(name).weight.shape
        n_out, n_in = sides if isinstance(module, nn.Linear) else reversed(sides)
        change(module, *factors(n_in, n_out), 0.5)
        write_weights(model, decoder, tmp_path / "made")
    found = type(dense).from_pretrained(tmp_path / "made")
    for own, weight in dense.named_parameters():
        wanted = module.merged(weight) if own == f"{name}.weight" else weight
        assert torch.equal(found.get_parameter(own), wanted), own
    assert Decoder(found).n_layers == 2
