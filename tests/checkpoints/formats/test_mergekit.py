"""Passthrough configs of mergekit: a reader of the format makes the checkpoint from its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints.formats import variants
from checkpoints.formats.variants import bpe, decoder_of
from safetensors.torch import load_file

from streamline.checkpoints.checkpoint import save
from streamline.checkpoints.formats.mergekit import FILE, passthrough
from streamline.checkpoints.formats.serving import write_format
from streamline.engine.families import family_of
from streamline.errors import UnsupportedModelError
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.sources.names import ModelSource


def made(folder: Path, family: str, prune: Any, **cell: Any) -> tuple[Path, Path]:
    """A base model and a checkpoint of it."""
    decoder = decoder_of(family)
    decoder.model.save_pretrained(folder / "base")
    bpe().save_pretrained(folder / "base")
    facts = {"cell": {"model": str(folder / "base"), **cell}}
    return folder / "base", save(prune(decoder), decoder, bpe(), folder / "a", facts, verify=False)


def rebuilt(config: dict[str, Any], layers: str) -> dict[str, torch.Tensor]:
    """What the format says: layers of the ranges, in order; all else of the base."""
    (base,) = {source["model"] for part in config["slices"] for source in part["sources"]}
    tensors = load_file(Path(base) / "model.safetensors")
    prefix = f"{layers}."
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    ranges = [source["layer_range"] for part in config["slices"] for source in part["sources"]]
    kept = [layer for first, stop in ranges for layer in range(first, stop)]
    for index, layer in enumerate(kept):
        for name, tensor in tensors.items():
            if name.startswith(f"{prefix}{layer}."):
                found[name.replace(f"{prefix}{layer}.", f"{prefix}{index}.", 1)] = tensor
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "phi3"])
def test_the_model_is_made_again_from_its_base(tmp_path, family):
    base, folder = made(tmp_path, family, lambda d: Pruned(Plan.drop(4, [0, 2])))
    out = write_format(folder, "mergekit", tmp_path / "b")
    config = yaml.safe_load((out / FILE).read_text())
    assert config["slices"][0]["sources"] == [{"model": str(base), "layer_range": [1, 2]}]
    assert (config["merge_method"], config["dtype"]) == ("passthrough", "float32")
    wanted = load_file(folder / "model.safetensors")
    found = rebuilt(config, family_of(family).layers)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_base_is_named_with_its_revision(tmp_path, monkeypatch):
    _, folder = made(tmp_path, "llama", variants.dropped)
    source = ModelSource(name="me/base@v1", kind="hub", location="me/base", revision="v1")
    monkeypatch.setattr("streamline.checkpoints.formats.mergekit.resolve_model", lambda _: source)
    config = yaml.safe_load((write_format(folder, "mergekit", tmp_path / "b") / FILE).read_text())
    assert config["slices"][0]["sources"][0]["model"] == "me/base@v1"


def test_layers_in_a_row_are_one_slice():
    ranges = [
        source["layer_range"]
        for part in passthrough(Plan.drop(9, [0, 3, 4, 7]), "b", "float32")["slices"]
        for source in part["sources"]
    ]
    assert ranges == [[1, 3], [5, 7], [8, 9]]


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("llama", "ffn", "takes layers of the base model as they are"),
        ("llama", "without_attention", "takes layers of the base model as they are"),
        ("qwen3", "dropped", "does not count the layers of qwen3 right"),
        ("opt", "dropped", "does not count the layers of opt right"),
    ],
)
def test_what_is_no_passthrough_is_refused(tmp_path, family, kind, reason):
    _, folder = made(tmp_path, family, getattr(variants, kind))
    with pytest.raises(UnsupportedModelError, match=reason):
        write_format(folder, "mergekit", tmp_path / "b")


def test_trained_weights_and_an_unknown_base_are_refused(tmp_path):
    def tuned(decoder: Any) -> Pruned:
        decoder.model.model.layers[3].mlp.up_proj.weight.data.add_(1e-3)
        return variants.dropped(decoder)

    _, folder = made(tmp_path, "llama", tuned)
    with pytest.raises(UnsupportedModelError, match="layers.2.mlp.up_proj.weight is not as in"):
        write_format(folder, "mergekit", tmp_path / "b")
    decoder = decoder_of("llama")
    alone = save(variants.dropped(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    with pytest.raises(UnsupportedModelError, match="names no base model"):
        write_format(alone, "mergekit", tmp_path / "b")
