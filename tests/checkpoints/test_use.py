"""What people do with a checkpoint of layers of its own works as with any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.test_saved_again import KINDS
from transformers import AutoModel, AutoModelForCausalLM, pipeline

from streamline.checkpoints.checkpoint import save
from streamline.engine.decoder import Decoder
from streamline.modeling.modeling_streamline import register
from streamline.testing.models import tiny_model, tiny_tokenizer

IDS = torch.arange(1, 13)[None]
OWN = ("ffn", "multiple-swiglu", "shared-layer", "shared-ffn", "mixed", "sliced", "resized")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each kind of layers, with a tokenizer."""
    register()
    root, made = tmp_path_factory.mktemp("use"), {}
    for kind in OWN:
        family, prune = KINDS[kind]
        decoder = Decoder(tiny_model(family, n_layers=4))
        made[kind] = save(prune(decoder), decoder, tiny_tokenizer(), root / kind, {}, verify=False)
    return made


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("kind", OWN)
def test_the_base_model_alone_has_the_last_states(folders, kind):
    whole = loaded(folders[kind])
    base = AutoModel.from_pretrained(folders[kind]).eval()
    assert json.loads((folders[kind] / "config.json").read_text())["auto_map"]["AutoModel"]
    assert not hasattr(base, "lm_head")
    with torch.no_grad():
        found = base(IDS).last_hidden_state
        head = whole.get_output_embeddings()
        torch.testing.assert_close(head(found), whole(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_attention_back_ends_agree(folders, kind):
    eager = loaded(folders[kind], attn_implementation="eager")
    base = type(eager).__mro__[2]
    for name in ("sdpa", "flash_attn", "flex_attn", "attention_backend"):
        assert getattr(eager, f"_supports_{name}") == getattr(base, f"_supports_{name}")
    assert base._supports_sdpa
    wanted = logits(eager)
    eager.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(eager), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", OWN)
def test_gradient_checkpointing_gives_the_same_gradients(folders, kind):
    model = loaded(folders[kind]).train()
    model.config.use_cache = False
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            calls = counted(model)
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert calls and all(n == 2 for n in calls.values()), "every layer runs again, once"
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def counted(model: Any) -> dict[int, int]:
    """How often the first linear map of each layer runs, once a step has been made."""
    calls: dict[int, int] = {}
    path = model.config.streamline["layers_path"]
    for index, layer in enumerate(model.get_submodule(path)):
        first = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        if model.config.streamline["layers"][index]["kind"] == "repeated":
            continue  # runs several times anyway

        def count(*_: Any, index: int = index) -> None:
            calls[index] = calls.get(index, 0) + 1

        first.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("kind", OWN)
def test_half_precision_and_a_device_map(folders, kind):
    half = loaded(folders[kind], dtype=torch.bfloat16, device_map="cpu")
    assert half.dtype == torch.bfloat16
    wanted = logits(loaded(folders[kind]))
    assert (logits(half) - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("kind", OWN)
def test_adapters_train_and_are_merged(folders, kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        loaded(folders[kind]), LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    )
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)
    wanted = logits(model.eval())
    if kind == "shared-layer":
        return  # each place has an adapter of its own, which one shared weight cannot hold
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["ffn", "mixed", "sliced"])
def test_a_pipeline_writes(folders, kind):
    writer = pipeline("text-generation", model=str(folders[kind]), device="cpu")
    text = writer("a fox", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    model = loaded(folders[kind])
    ids = tiny_tokenizer()("a fox", return_tensors="pt").input_ids
    alone = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert text == tiny_tokenizer().decode(alone[0], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["ffn", "mixed", "sliced", "resized"])
def test_a_compiled_model_is_the_same_without_breaks(folders, kind):
    model = loaded(folders[kind])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model))
