"""What is saved is what is loaded: every kind and dtype, with and without this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import THREE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from streamline import register
from streamline.checkpoints import checkpoint
from streamline.checkpoints.checkpoint import load, save
from streamline.checkpoints.info import read_info
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError, ConfigError, PlanError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.modeling.modeling_streamline import FILES
from streamline.plan import Plan, Span, Step
from streamline.sources.models import load_config, load_model
from streamline.testing.models import tiny_model

PLAIN = ("drop", "layer")


def replaced(decoder: Decoder, kind: str, **options: Any) -> Pruned:
    """Layers 1 and 2 replaced."""
    span = Span(1, 3)
    module = make(kind, decoder, span, **options).to(decoder.dtype)
    return Pruned(Plan.replace(decoder.n_layers, span, kind), {1: module})


def sublayers(decoder: Decoder) -> Pruned:
    """Layer 0 without attention, layer 1 without MLP, layer 2 gone."""
    steps = (Step(0, "no-attention"), Step(1, "no-mlp"), Step(3))
    return Pruned(
        Plan(4, steps),
        {0: remove_sublayer(decoder, 0, "attention"), 1: remove_sublayer(decoder, 1, "mlp")},
    )


CASES: dict[str, Callable[[Decoder], Pruned]] = {
    "drop": lambda decoder: Pruned(Plan.drop(4, [0, 2])),
    "layer": lambda decoder: replaced(decoder, "layer", init="mean"),
    "ffn": lambda decoder: replaced(decoder, "ffn"),
    "shared-layer": lambda decoder: replaced(decoder, "shared-layer", init="first"),
    "multiple-swiglu": lambda decoder: replaced(decoder, "multiple-swiglu"),
    "sublayers": sublayers,
}


def tiny(family: str, tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model of four layers; buffers stay in float32, as when loaded in a dtype."""
    model = tiny_model(family, n_layers=4, tied=tied)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def names(folder: Path) -> set[str]:
    """Names of the saved tensors."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("tied", [False, True], ids=["untied-float32", "tied-bfloat16"])
@pytest.mark.parametrize("family", THREE)
@torch.no_grad()
def test_round_trip(
    family: str, tied: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder = Decoder(tiny(family, tied, torch.bfloat16 if tied else torch.float32))
    ids = torch.randint(0, 250, (2, 10), generator=torch.Generator().manual_seed(1))
    for case in ("drop", "ffn", "shared-layer") if tied else CASES:
        pruned = CASES[case](decoder)
        save(pruned, decoder, tokenizer, tmp_path / case, {"method": case}, verify=False)
        model, loaded_tokenizer, info = load(tmp_path / case)
        expected = assemble(pruned.path(decoder))
        if family != "falcon":  # falcon chooses its attention class when it is made
            model.set_attn_implementation("eager")
        exact = 0.0 if family != "falcon" else 1e-5 if not tied else 0.1
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0, atol=exact)
        assert model.num_parameters() == pruned.n_parameters(decoder)
        assert model.dtype == decoder.dtype
        assert not model.training
        assert loaded_tokenizer is not None
        text = "A pruned model, again."
        assert loaded_tokenizer(text).input_ids == tokenizer(text).input_ids
        assert (info.plan, info.plain) == (pruned.plan, case in PLAIN)
        assert info.provenance["method"] == case
        assert info.provenance["parameters"] == pruned.n_parameters(decoder)
        assert (tmp_path / case / "modeling_streamline.py").exists() is (case not in PLAIN)
        assert model.generation_config.eos_token_id == 258
        assert Decoder(model).family is decoder.family
    assert decoder.model.config.num_hidden_layers == 4


def test_plain_config_is_the_familys_own(tmp_path: Path) -> None:
    decoder = Decoder(tiny("qwen3"))
    save(CASES["drop"](decoder), decoder, None, tmp_path / "c", {}, verify=False)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("qwen3", 2)
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "auto_map" not in config
    assert not (tmp_path / "c" / "tokenizer_config.json").exists()
    assert load(tmp_path / "c")[1] is None


def test_other_config_names_its_base(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    save(CASES["ffn"](decoder), decoder, None, tmp_path / "c", {}, verify=False)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["model_type"], config["base_model_type"]) == ("streamline", "llama")
    assert config["streamline"]["layers"][1]["kind"] == "ffn"
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    files = {path.name for path in (tmp_path / "c").iterdir()}
    assert set(FILES) | {"plan.json", "provenance.json"} < files


def test_shared_weights_are_saved_once(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    pruned = CASES["shared-layer"](decoder)
    save(pruned, decoder, None, tmp_path / "c", {}, verify=False)
    saved = names(tmp_path / "c")
    assert any(name.startswith("model.layers.1.") for name in saved)
    assert not any(name.startswith("model.layers.2.") for name in saved)
    model, _, _ = load(tmp_path / "c")
    first, second = model.model.layers[1:3]
    assert first.mlp.up_proj.weight is second.mlp.up_proj.weight


def test_loading_by_auto_classes_and_assets(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder = Decoder(tiny("llama"))
    folder = save(CASES["ffn"](decoder), decoder, tokenizer, tmp_path / "c", {}, verify=False)
    register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model, found = load_model(str(folder))
    assert isinstance(model, type(decoder.model))
    assert found.get_vocab() == tokenizer.get_vocab()
    counted = Decoder.from_config(load_config(str(folder)))
    assert counted.n_parameters() == model.num_parameters()


@torch.no_grad()
def test_a_loaded_model_is_pruned_and_saved_again(tmp_path: Path) -> None:
    decoder = Decoder(tiny("opt"))
    save(CASES["sublayers"](decoder), decoder, None, tmp_path / "a", {}, verify=False)
    once, _, _ = load(tmp_path / "a")
    again = Decoder(once)
    pruned = Pruned(Plan.drop(3, [1]))
    save(pruned, again, None, tmp_path / "b", {}, verify=False)
    twice, _, _ = load(tmp_path / "b")
    ids = torch.arange(8)[None]
    expected = assemble(pruned.path(again))(ids).logits
    torch.testing.assert_close(twice(ids).logits, expected, rtol=0, atol=1e-5)
    once.save_pretrained(tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["model_type"] == "streamline"


def test_dtype_of_choice(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    save(CASES["drop"](decoder), decoder, None, tmp_path / "c", {}, verify=False)
    assert load(tmp_path / "c", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def tampered(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a folder's tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("case", ["drop", "ffn"])
def test_no_tensor_may_be_missing_or_left_over(case: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    folder = save(CASES[case](decoder), decoder, None, tmp_path / "c", {}, verify=False)
    tampered(folder, lambda tensors: tensors.update(extra=torch.zeros(2)))
    with pytest.raises(AssetError, match="extra"):
        load(folder)
    tampered(folder, lambda tensors: (tensors.pop("extra"), tensors.pop("model.norm.weight")))
    with pytest.raises(AssetError, match=r"missing_keys.*model\.norm\.weight"):
        load(folder)


def test_layers_of_another_shape_are_not_saved(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    narrow = tiny("llama")
    narrow.model.layers[1].mlp.down_proj = torch.nn.Linear(64, 32, bias=True)
    with pytest.raises(AssetError, match=r"unexpected.*layers\.1\.mlp\.down_proj\.bias"):
        save(Pruned(Plan.dense(4), model=narrow), decoder, None, tmp_path / "c", {}, verify=False)
    narrow.model.layers[1].mlp.down_proj = torch.nn.Linear(60, 32, bias=False)
    narrow.model.layers[1].mlp.gate_proj = torch.nn.Linear(32, 60, bias=False)
    narrow.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 60, bias=False)
    with pytest.raises(AssetError, match=r"mismatched_keys.*layers\.1\.mlp\.down_proj\.weight"):
        save(Pruned(Plan.dense(4), model=narrow), decoder, None, tmp_path / "c", {}, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_one_dtype(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama", dtype=torch.bfloat16))
    pruned = replaced(decoder, "ffn")
    pruned.modules[1].float()
    with pytest.raises(PlanError, match="one dtype, torch.bfloat16: .*fc1.*before saving"):
        save(pruned, decoder, None, tmp_path / "c", {}, verify=False)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty; choose another folder"):
        save(CASES["drop"](decoder), decoder, None, tmp_path, {}, verify=False)
    (tmp_path / "empty").mkdir()
    save(CASES["drop"](decoder), decoder, None, tmp_path / "empty", {}, verify=False)
    assert (tmp_path / "empty" / "plan.json").is_file()


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny("llama"))

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_self_test", fail)
    with pytest.raises(OSError, match="disk full"):
        save(CASES["drop"](decoder), decoder, None, tmp_path / "c", {}, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"no checkpoint of this package: config\.json, plan"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "provenance.json"])
@pytest.mark.parametrize("data", [b"{", b'{"n": "\xe9"}', b"[" * 100_000, b"[]", b"3", b"{}"])
def test_a_damaged_description_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "plan.json").write_text(json.dumps(Plan.dense(2).to_json()))
    (tmp_path / "provenance.json").write_text('{"plain": true}')
    assert read_info(tmp_path).plain
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AssetError, match="is damaged: .*; make it again"):
        read_info(tmp_path)
