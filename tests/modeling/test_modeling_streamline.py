"""The config and model classes of checkpoints with layers of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path
from streamline.modeling.modeling_layers import FFN
from streamline.modeling.modeling_streamline import (
    StreamlineConfig,
    config_class,
    install,
    model_class,
    with_layers,
)
from streamline.modeling.modeling_sublayers import number_caches
from streamline.testing.models import tiny_config, tiny_model


def fields(**changes: object) -> dict[str, object]:
    """A config as written in a checkpoint of three layers, the second an FFN."""
    specs = [{"kind": "layer"}, FFN(32, 8).spec(), {"kind": "layer"}]
    return {
        **tiny_config("llama", n_layers=3).to_dict(),
        "model_type": "streamline",
        "base_model_type": "llama",
        "streamline": {"layers": specs, "layers_path": "model.layers", "tuple_output": False},
        **changes,
    }


def test_config_is_the_bases_in_memory_and_its_own_on_disk() -> None:
    config = StreamlineConfig.from_dict(fields())
    assert isinstance(config, LlamaConfig)
    assert config.model_type == "llama"
    written = config.to_dict()
    assert (written["model_type"], written["base_model_type"]) == ("streamline", "llama")
    assert written["rope_parameters"] == tiny_config("llama").rope_parameters
    again = StreamlineConfig.from_dict(written)
    assert again.to_dict() == written
    assert type(again) is type(config) is config_class("llama")


def test_config_can_be_copied_and_pickled() -> None:
    config = StreamlineConfig.from_dict(fields())
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(again) is type(config)
        assert again.to_dict() == config.to_dict()


def test_config_without_a_base() -> None:
    written = fields()
    del written["base_model_type"]
    with pytest.raises(ValueError, match="names its base_model_type; this one does not"):
        StreamlineConfig.from_dict(written)
    with pytest.raises(ValueError, match="no model type 'lama'"):
        StreamlineConfig.from_dict(fields(base_model_type="lama"))


def test_model_is_the_bases_with_layers_exchanged() -> None:
    model = model_class("llama")(StreamlineConfig.from_dict(fields()))
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(model.model.layers[1], FFN)
    assert [model.model.layers[i].self_attn.layer_idx for i in (0, 2)] == [0, 1]
    assert "FFN" in model._no_split_modules


def test_one_spec_per_layer() -> None:
    config = StreamlineConfig.from_dict(fields(num_hidden_layers=2))
    with pytest.raises(ValueError, match="3 layer specs for a model of 2 layers"):
        model_class("llama")(config)


def test_shared_layers_are_tied_with_or_without_a_tied_head() -> None:
    for tied in (False, True):
        decoder = Decoder(tiny_model("llama", n_layers=2, tied=tied))
        twice = assemble(Path(decoder, (Node(decoder.layers[0], 0), Node(decoder.layers[0], 1))))
        layer = {"kind": "layer"}
        model = with_layers(
            twice,
            {
                "layers": [layer, {"kind": "shared", "of": 0, "module": layer}],
                "layers_path": "model.layers",
                "tuple_output": False,
            },
        )
        keys = model.get_expanded_tied_weights_keys()
        name = "mlp.up_proj.weight"
        assert keys[f"model.layers.1.{name}"] == f"model.layers.0.{name}"
        assert ("lm_head.weight" in keys) is tied
        fresh = type(model)(copy.deepcopy(model.config))
        fresh.tie_weights()
        assert fresh.get_parameter(f"model.layers.1.{name}") is fresh.get_parameter(
            f"model.layers.0.{name}"
        )
        assert fresh.num_parameters() == model.num_parameters()


def test_cache_places_are_counted_by_type() -> None:
    model = tiny_model("gemma2", n_layers=4)
    model.model.layers[0] = FFN(32, 8)
    number_caches(list(model.model.layers), model.config)
    # the FFN takes the type of the first layer that attends, so that this one has place 0
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    assert model.config.layer_types == kinds
    assert [layer.self_attn.layer_idx for layer in list(model.model.layers)[1:]] == [0, 2, 1]


def test_layers_of_families_that_return_tuples() -> None:
    model = tiny_model("falcon", n_layers=1)
    model.config.streamline = {
        "layers": [{"kind": "repeated", "times": 2, "module": FFN(32, 8).spec()}],
        "layers_path": "transformer.h",
        "tuple_output": True,
    }
    install(model, model.config)
    assert model.eval()(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 320)
