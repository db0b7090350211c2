from __future__ import annotations

import json

import pytest
import torch
from families import EVERY, THREE
from transformers import DynamicCache

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.efficiency.counts import (
    cache_bytes,
    checkpoint_bytes,
    counts,
    shape_of,
)
from streamline.evaluation.efficiency.memory import peak_of
from streamline.methods.sublayers import Sublayers
from streamline.testing.models import tiny_model

CONTEXT = 16


def without(decoder, *gone):
    nodes = dense_path(decoder).nodes
    return Path(decoder, tuple(node for i, node in enumerate(nodes) if i not in gone))


def attention_flops(config, layers=1):
    """Of one token: its scores with the context and itself, then the sum of the values."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * config.num_attention_heads * width * (CONTEXT + 1) * layers


@pytest.mark.parametrize("family", EVERY)
def test_the_flops_of_a_token_are_those_of_its_matrices_and_its_attention(family):
    model = tiny_model(family).eval()
    decoder = Decoder(model)
    matrices = [p for layer in decoder.layers for p in layer.parameters() if p.dim() == 2]
    matrices.append(submodule(model, decoder.family.head).weight)
    experts = [p for layer in decoder.layers for p in layer.parameters() if p.dim() == 3]
    assert bool(experts) == decoder.family.mixture
    met = sum(p[0].numel() for p in experts) * getattr(model.config, "num_experts_per_tok", 0)
    expected = 2 * (sum(p.numel() for p in matrices) + met) + attention_flops(
        model.config, decoder.n_layers
    )
    assert counts(model, CONTEXT)["flops_per_token"] == expected


@pytest.mark.parametrize("family", THREE)
def test_the_bytes_of_the_cache_are_those_of_a_real_one(family):
    model = tiny_model(family).eval()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.ones(1, 10, dtype=torch.int64), past_key_values=cache, use_cache=True)
    assert counts(model, CONTEXT)["kv_cache_bytes_per_token"] * 10 == cache_bytes(cache)


def test_grouped_heads_and_half_precision_take_less_cache():
    model = tiny_model("llama").eval()
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    assert counts(model, CONTEXT)["kv_cache_bytes_per_token"] == 4 * numbers
    half = counts(model.to(torch.bfloat16), CONTEXT)
    assert half["kv_cache_bytes_per_token"] == 2 * numbers


def test_a_removed_layer_takes_its_share_of_everything_along():
    decoder = Decoder(tiny_model("llama", n_layers=6).eval())
    dense, short = (
        counts(assemble(path), CONTEXT) for path in (dense_path(decoder), without(decoder, 1, 4))
    )
    layer = decoder.layer_parameters(0)
    matrices = sum(p.numel() for p in decoder.layers[0].parameters() if p.dim() == 2)
    assert dense["parameters"] - short["parameters"] == 2 * layer
    assert dense["checkpoint_bytes"] - short["checkpoint_bytes"] == 2 * 4 * layer
    assert dense["flops_per_token"] - short["flops_per_token"] == 2 * (
        2 * matrices + attention_flops(decoder.config)
    )
    assert short["kv_cache_bytes_per_token"] * 6 == dense["kv_cache_bytes_per_token"] * 4


def test_a_layer_without_attention_keeps_nothing_in_the_cache():
    decoder = Decoder(tiny_model("llama", n_layers=4).eval())
    path = Sublayers(decoder).path([(1, "attention"), (3, "mlp")])
    dense, short = (counts(assemble(p), CONTEXT) for p in (dense_path(decoder), path))
    assert short["kv_cache_bytes_per_token"] * 4 == dense["kv_cache_bytes_per_token"] * 3


@pytest.mark.parametrize("tied", [False, True])
def test_the_bytes_of_a_checkpoint_are_those_of_its_file(tied, tmp_path):
    model = tiny_model("llama", tied=tied)
    model.save_pretrained(tmp_path)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    assert checkpoint_bytes(model) == max(t["data_offsets"][1] for t in header.values())


def test_the_same_number_of_equal_layers_is_one_shape_wherever_they_were():
    decoder = Decoder(tiny_model("llama", n_layers=6).eval())
    shapes = [shape_of(assemble(without(decoder, *gone))) for gone in [(1, 2), (3, 5), (1, 2, 3)]]
    assert shapes[0] == shapes[1] != shapes[2]
    other = Decoder(tiny_model("llama", n_layers=6, seed=1).eval())
    assert shape_of(assemble(without(other, 0, 1))) == shapes[0]


def test_other_modules_widths_and_windows_are_other_shapes():
    decoder = Decoder(tiny_model("gemma2", n_layers=4).eval())
    sublayers = Sublayers(decoder)
    paths = [
        without(decoder, 0),
        without(decoder, 1),  # another window
        sublayers.path([(0, "attention")]),
        sublayers.path([(0, "mlp")]),
        dense_path(decoder),
    ]
    models = [assemble(path) for path in paths]
    models += [tiny_model("gemma2", n_layers=4, intermediate_size=48)]
    models += [assemble(dense_path(decoder)).to(torch.bfloat16)]
    assert len({shape_of(model) for model in models}) == len(models)


def test_the_peak_counts_what_lives_at_once():
    with torch.inference_mode(), peak_of(torch.device("cpu")) as peak:
        kept = torch.ones(1000)
        for _ in range(5):
            gone = kept + 1
            _view = gone.view(10, 100)[0]
            del gone, _view
        torch.cat([kept, kept])
    assert (peak.bytes, peak.way) == (4000 + 8000, "tensors")


def test_what_was_there_before_is_not_part_of_the_peak():
    weight = torch.ones(100, 100)
    with torch.inference_mode(), peak_of(torch.device("cpu")) as peak:
        weight @ weight[:, :1]
    assert peak.bytes == 400
