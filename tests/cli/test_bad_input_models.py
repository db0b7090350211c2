"""Bad model folders, met by each verb that takes a model: one message, whatever is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Shown
from safetensors.torch import load_file, save_file


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        kept = {name: value for name, value in values.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return change


def _file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


def _weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        edit(tensors)
        save_file(tensors, path, {"format": "pt"})

    return change


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


_UP = "model.layers.3.mlp.up_proj.weight"
_QUANTISED = {"bits": 4, "group_size": 32}
_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "t5": (_config(model_type="t5", architectures=["T5ForConditionalGeneration"]), "t5"),
    "llava": (_config(model_type="llava"), "llava"),
    "mamba": (_config(model_type="mamba"), "mamba"),
    "unknown": (_config(model_type="flurble"), "flurble"),
    "no-type": (_config(model_type=None, architectures=None), "no-type"),
    "bnb": (_config(quantization_config={"quant_method": "bitsandbytes"}), "quanti"),
    "gptq": (_config(quantization_config={"quant_method": "gptq", **_QUANTISED}), "quanti"),
    "awq": (_config(quantization_config={"quant_method": "awq", **_QUANTISED}), "quanti"),
    "hidden": (_config(hidden_size=48), "hidden"),
    "vocabulary": (_config(vocab_size=200), "vocabulary"),
    "more-layers": (_config(num_hidden_layers=12, layer_types=None), "more-layers"),
    "fewer-layers": (_config(num_hidden_layers=4, layer_types=None), "fewer-layers"),
    "no-layers": (_config(num_hidden_layers=0, layer_types=None), "no-layers"),
    "text-layers": (_config(num_hidden_layers="six", layer_types=None), "text-layers"),
    "config-cut": (_file("config.json", b"{bad"), "config-cut"),
    "config-latin": (_file("config.json", b'{"model_type": "\xe9"}'), "config-latin"),
    "config-list": (_file("config.json", b"[]"), "config-list"),
    "config-deep": (_file("config.json", b"[" * 100_000), "config-deep"),
    "config-none": (_file("config.json", None), "holds no config.json"),
    "weights-none": (_file("model.safetensors", None), "weights-none"),
    "weights-empty": (_file("model.safetensors", b""), "weights-empty"),
    "weights-zero": (_file("model.safetensors", bytes(5000)), "weights-zero"),
    "weights-cut": (_cut, "weights-cut"),
    "tensor-missing": (_weights(lambda found: found.pop(_UP)), "tensor-missing"),
    "tensor-shape": (_weights(lambda found: found.update({_UP: torch.zeros(7, 7)})), "shape"),
    "tensor-extra": (
        _weights(lambda found: found.update({"model.layers.99.x": torch.zeros(3)})),
        "tensor-extra",
    ),
    "tokenizer-none": (_no_tokenizer, "tokenizer"),
    "tokenizer-cut": (_file("tokenizer.json", b"{"), "tokenizer"),
}
_ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "facebook/opt-1.3b"}


@pytest.fixture(scope="session")
def bad_models(inputs: Path) -> Path:
    """The folder of inputs with every bad model."""
    for name, (change, _) in _MODELS.items():
        folder = inputs / name
        shutil.copytree(inputs / "model", folder)
        change(folder)
    (inputs / "adapter").mkdir()
    (inputs / "adapter" / "adapter_config.json").write_text(json.dumps(_ADAPTER), encoding="utf-8")
    (inputs / "no-model").mkdir()
    return inputs


_RUN = "--suite s.yaml --out OUT --models"
_PRUNE = "prune {} --suite s.yaml --method shortgpt --sparsity 0.3 --out OUT"
_EVALUATE = "evaluate {} --tasks piqa --data-dir data --device cpu --limit 2 --out OUT.json"


@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.parametrize("line", [f"{_RUN} {{}}", f"{_RUN} {{}} --stream", _EVALUATE, _PRUNE])
def test_a_bad_model_is_refused(
    line: str, name: str, bad_models: Path, bench: Callable[..., Shown]
) -> None:
    bench(line.format(name)).refuses(_MODELS[name][1])


@pytest.mark.parametrize("name", ["t5", "llava", "unknown", "config-cut", "no-layers", "adapter"])
def test_a_plan_refuses_it_too(name: str, bad_models: Path, bench: Callable[..., Shown]) -> None:
    bench(f"{_RUN} {name} --dry-run").refuses(name)


@pytest.mark.parametrize("name", ["adapter", "no-model"])
def test_a_folder_without_a_model_is_refused(
    name: str, bad_models: Path, bench: Callable[..., Shown]
) -> None:
    for line in (f"{_RUN} {{}}", _EVALUATE, _PRUNE):
        bench(line.format(name)).refuses(name)


@pytest.mark.parametrize("models", ["weights-cut,model", "model,weights-cut"])
def test_a_bad_model_costs_the_others_nothing(
    models: str, bad_models: Path, bench: Callable[..., Shown]
) -> None:
    shown = bench(f"{_RUN} {models}")
    shown.refuses("weights-cut", code=1)
    assert "shortgpt" in shown.out
