"""Experts that lie one by one are read as the tensors that a model has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamline.errors import AssetError
from streamline.sources.accounting import account
from streamline.sources.weights import WeightSource
from streamline.testing.models import tiny_model

OUT = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_every_tensor_is_the_models_own(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, n_layers=2)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with WeightSource(tmp_path) as source:
        places = account(model, source)
        assert len(source[places[OUT]].parts) == 4
        for name, tensor in model.state_dict().items():
            assert torch.equal(source.read(places[name]), tensor), name
        for part, _ in source[places[OUT]].parts:
            source.read(part)
    assert set(source.reads.values()) == {1}


def test_a_missing_or_misshapen_expert_is_named(tmp_path: Path) -> None:
    model = tiny_model("mixtral", n_layers=2)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    whole = load_file(file)
    for changed in (None, whole[name].half()):
        tensors = {key: value for key, value in whole.items() if key != name}
        if changed is not None:
            tensors[name] = changed
        save_file(tensors, file, {"format": "pt"})
        with WeightSource(tmp_path) as source, pytest.raises(AssetError, match=f"missing: '{OUT}'"):
            account(model, source)
