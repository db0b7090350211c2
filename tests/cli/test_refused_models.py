"""Model folders that are none, or of a kind that cannot be pruned: one message from each verb."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Shown
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    LlavaConfig,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from streamline.testing.models import tiny_config

_VERBS = {
    "run": "run --suite s.yaml --models {} --methods shortgpt --out OUT",
    "dry": "run --suite s.yaml --models {} --methods shortgpt --out OUT --dry-run",
    "stream": "run --suite s.yaml --models {} --methods shortgpt --out OUT --stream",
    "evaluate": "evaluate {} --tasks piqa --data-dir data --limit 2 --out OUT/record.json",
    "prune": "prune {} --suite s.yaml --method shortgpt --sparsity 0.3 --out OUT/pruned",
}


class Evil:
    """Something whose unpickling makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made by evil",)


def configured(folder: Path, **changes: Any) -> None:
    """Change fields of a folder's config; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def zeroed(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)


def pickled(folder: Path, content: bytes | None) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if content is None:
        torch.save({"model.norm.weight": Evil()}, file)
    else:
        file.write_bytes(content)


def quantised(**how: Any) -> Callable[[Path], None]:
    return lambda folder: configured(folder, quantization_config=how)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "some-org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def bare_adapter(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def replaced(make: Callable[[], Any]) -> Callable[[Path], None]:
    """Another model in place of the folder's."""

    def write(folder: Path) -> None:
        for name in ("model.safetensors", "config.json", "generation_config.json"):
            (folder / name).unlink()
        made = make()
        made.save_pretrained(folder)

    return write


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def bert() -> Any:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64,
        )
    )  # fmt: skip


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2))


def llava(folder: Path) -> None:
    vision = AutoConfig.for_model("clip_vision_model", hidden_size=32, num_attention_heads=4)
    made = LlavaConfig(text_config=tiny_config("llama"), vision_config=vision)
    (folder / "config.json").write_text(json.dumps(made.to_dict(), default=str))


def no_ends(folder: Path) -> None:
    """No token that begins, ends or pads."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    gone = ("bos_token", "eos_token", "pad_token")
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in gone}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def large_tokenizer(folder: Path) -> None:
    """A vocabulary of 300 more tokens."""
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary |= {f"more{n}": 400 + n for n in range(300)}
    path.write_text(json.dumps(settings))


def own_code(folder: Path) -> None:
    configured(folder, model_type="unheard_of", auto_map={"AutoConfig": "own.OwnConfig"})
    (folder / "own.py").write_text("raise SystemExit('ran')")


_BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "t5": (replaced(t5), "(t5) has an encoder and a decoder; give a decoder-only"),
    "bert": (replaced(bert), "(bert) is an encoder, which does not continue text"),
    "llava": (llava, "(llava) is multimodal; give a decoder-only"),
    "mamba": (replaced(mamba), "model type 'mamba' has no row in the table of families"),
    "bnb": (quantised(quant_method="bitsandbytes", load_in_8bit=True), "with bitsandbytes; layers"),
    "gptq": (quantised(quant_method="gptq", bits=4), "quantised with gptq; layers are compared"),
    "awq": (quantised(quant_method="awq", bits=4), "call model.dequantize() and save_pretrained"),
    "fp8": (quantised(quant_method="fp8"), "weights quantised with fp8"),
    "adapter": (adapter, "is an adapter of 'some-org/base', not a whole model; merge it first"),
    "bare adapter": (bare_adapter, "is an adapter of 'some-org/base', not a whole model"),
    "config: no JSON": (text("config.json", "{bad"), "config.json is not JSON"),
    "config: empty": (text("config.json", ""), "config.json is not JSON"),
    "config: a list": (text("config.json", "[]"), "config.json holds no JSON object"),
    "config: deep": (text("config.json", "[" * 100_000), "config.json is not JSON"),
    "empty": (emptied, "holds no config.json"),
    "config: none": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config: binary": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"),
        "config.json is not JSON",
    ),
    "config: no type": (lambda f: configured(f, model_type=None), "names no model_type"),
    "config: a new type": (lambda f: configured(f, model_type="flurble"), "model type `flurble`"),
    "config: no number": (lambda f: configured(f, num_hidden_layers="six"), "num_hidden_layers"),
    "config: heads": (lambda f: configured(f, num_attention_heads=0), "could not be loaded"),
    "config: no layers": (
        lambda f: configured(f, num_hidden_layers=0, layer_types=None),
        "no layers",
    ),
    "config: more layers": (
        lambda f: configured(f, num_hidden_layers=9, layer_types=None),
        "num_hidden_layers is 9, the weights are of the layers 0, 1, 2, 3, 4, 5",
    ),
    "config: fewer layers": (
        lambda f: configured(f, num_hidden_layers=3, layer_types=None),
        "left over: 'model.layers.3.",
    ),
    "config: hidden": (lambda f: configured(f, hidden_size=48), "[320, 32], the config needs [320"),
    "config: vocabulary": (lambda f: configured(f, vocab_size=300), "the config needs [300, 32]"),
    "config: layer types": (
        lambda f: configured(f, layer_types=["full_attention"] * 2),
        "layer_types names 2 layers, num_hidden_layers is 6",
    ),
    "config: activation": (lambda f: configured(f, hidden_act="nope"), "loaded: KeyError: 'nope'"),
    "generation: no JSON": (text("generation_config.json", "{"), "config.json is not JSON"),
    "weights: none": (lambda f: (f / "model.safetensors").unlink(), "holds no weights: give a"),
    "weights: empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a safetensors"),
    "weights: cut": (cut, "it is damaged or cut short"),
    "weights: zero": (zeroed, "is not a safetensors file"),
    "weights: one missing": (
        lambda f: edited(f, lambda t: t.pop("model.layers.3.mlp.up_proj.weight")),
        "missing: 'model.layers.3.mlp.up_proj.weight'",
    ),
    "weights: one more": (
        lambda f: edited(f, lambda t: t.update({"model.layers.99.x": torch.zeros(3)})),
        "left over: 'model.layers.99.x'",
    ),
    "weights: a shape": (
        lambda f: edited(f, lambda t: t.update({"model.norm.weight": torch.zeros(7)})),
        "'model.norm.weight' is [7], the config needs [32]",
    ),
    "pickle: code": (lambda f: pickled(f, None), "cannot be read as weights alone"),
    "pickle: cut": (lambda f: pickled(f, b"PK\x03\x04"), "cannot be read as weights alone"),
    "pickle: a number": (lambda f: pickled(f, pickle.dumps(3)), "cannot be read as weights alone"),
    "tokenizer: none": (no_tokenizer, "could not be loaded"),
    "tokenizer: no JSON": (text("tokenizer.json", "{"), "could not be loaded"),
    "tokenizer: no ends": (no_ends, "has neither a token that begins a text nor one that ends it"),
    "tokenizer: large": (large_tokenizer, "its vocabulary has 5"),
    "own code": (own_code, "run with --trust-remote-code alone"),
}


def model(inputs: Path, change: Callable[[Path], Any]) -> str:
    """A copy of the tiny model's folder, changed; its name below the folder of inputs."""
    folder = inputs / "odd"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs / "model", folder)
    change(folder)
    return folder.name


# Each case with one verb, in turn; with the others it is slow.
_ROWS = [
    pytest.param(case, verb, marks=[] if n % len(_VERBS) == m else [pytest.mark.slow])
    for n, case in enumerate(_BAD)
    for m, verb in enumerate(_VERBS)
]


@pytest.mark.parametrize(("case", "verb"), _ROWS)
def test_a_bad_model(case: str, verb: str, inputs: Path, bench: Callable[..., Shown]) -> None:
    change, message = _BAD[case]
    bench(_VERBS[verb].format(model(inputs, change))).refuses(message)
    assert not (inputs / "made by evil").exists()


@pytest.mark.parametrize("models", ["odd,model", "model,odd"])
def test_a_bad_model_costs_the_others_nothing(
    models: str, inputs: Path, bench: Callable[..., Shown]
) -> None:
    model(inputs, cut)
    shown = bench(f"run --suite s.yaml --out OUT --models {models}")
    shown.refuses("odd", code=1)
    assert "shortgpt" in shown.out
