"""Opening a streamed model: empty, right in its buffers, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import THREE
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from streamline.engine.decoder import Decoder
from streamline.errors import AssetError, UnsupportedModelError
from streamline.registry import build_method, method_names
from streamline.streaming.opening import empty_model, load_streamed, open_streamed, refusal
from streamline.testing.models import tiny_config, tiny_model


@pytest.mark.parametrize("family", THREE)
def test_an_empty_model_has_the_buffers_of_a_full_one(family: str) -> None:
    state = torch.get_rng_state()
    model = empty_model(tiny_config(family, n_layers=2, tied=True), torch.bfloat16)
    assert torch.equal(state, torch.get_rng_state())
    full = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    wanted, found = dict(full.named_buffers()), dict(model.named_buffers())
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not model.training


def test_a_folder_is_opened_with_its_tokenizer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama", n_layers=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    decoder, found = load_streamed(str(tmp_path), dtype="bfloat16")
    with decoder.source as source:
        assert found("ab").input_ids == tokenizer("ab").input_ids
        assert decoder.dtype == torch.bfloat16
        assert set(source.reads) == {"model.norm.weight"}
        assert torch.equal(decoder.model.model.norm.weight, model.model.norm.weight.bfloat16())


def test_the_dtype_of_the_config(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=1).bfloat16()
    model.save_pretrained(tmp_path)
    config = model.config
    for dtype, wanted in (("auto", torch.bfloat16), ("float32", torch.float32)):
        decoder = open_streamed(tmp_path, config, dtype=dtype)
        with decoder.source:
            assert decoder.dtype == decoder.model.model.norm.weight.dtype == wanted


def test_a_checkpoint_of_the_base_model_alone(tmp_path: Path) -> None:
    model = tiny_model("gpt2", n_layers=2, tied=True)
    tensors = {
        name.removeprefix("transformer."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors")
    decoder = open_streamed(tmp_path, model.config)
    with decoder.source as source:
        for group in decoder.each([1]):
            weight = decoder.layers[group].mlp.c_fc.weight
            assert torch.equal(weight, Decoder(model).layers[1].mlp.c_fc.weight)
        assert source.reads["h.1.mlp.c_fc.weight"] == 1


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny_model("llama", n_layers=2).save_pretrained(tmp_path)
    with pytest.raises(AssetError, match=r"missing: 'model\.layers\.2\..* \(and 6 more"):
        open_streamed(tmp_path, tiny_config("llama", n_layers=3))
    with pytest.raises(AssetError, match=r"is \[64, 32\], the config needs \[48, 32\]"):
        open_streamed(tmp_path, tiny_config("llama", n_layers=2, intermediate_size=48))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AssetError, match=r"missing: 'lm_head\.weight'"):
        open_streamed(tmp_path, tiny_config("llama", n_layers=2))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    config = tiny_config("llama", n_layers=1)
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UnsupportedModelError, match="weights quantised with fp8"):
        open_streamed(tmp_path, config)


def test_methods_that_decide_by_one_pass_are_taken() -> None:
    taken = {n for n in method_names(("all",)) if refusal(build_method(n)) is None}
    assert taken >= {
        "dense", "shortgpt", "uidl", "first-layers", "last-layers", "random-layers", "sleb",
        "shortened-llama-ppl", "llm-streamline-none", "blockpruner", "linearpatch", "replaceme",
    }  # fmt: skip
    others = {"slicegpt", "llm-pruner", "shortened-llama-taylor", "laco", "prune-and-comp"}
    assert not taken & others


def test_a_refusal_says_why() -> None:
    assert "launch several processes" in str(refusal(build_method("llm-streamline-ffn")))
    assert "needs more of the model" in str(refusal(build_method("slicegpt")))


def test_several_processes_recover_what_none_of_them_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method("shortgpt")
    assert "launch several processes" in str(refusal(method, "lora"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refusal(method, "lora") is None
    assert refusal(build_method("llm-streamline-ffn"), "lora") is None
    for spec in ("llm-streamline-layer", "llm-streamline-ffn+init=linear"):
        assert refusal(build_method(spec)) is None
    assert "needs more of the model" in str(refusal(build_method("linearpatch+distill_epochs=1")))
    assert "needs more of the model" in str(refusal(build_method("slicegpt"), "lora"))
