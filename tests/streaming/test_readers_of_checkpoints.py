"""A checkpoint as a model: whole, streamed and counted it is the one that was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import agreed, logits, refused
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from streamline.checkpoints.checkpoint import save
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Plan, Span, Step
from streamline.testing.models import tiny_model


def replaced(kind: str, **options: Any) -> Callable[[Decoder], Pruned]:
    """Layers 1 and 2 replaced."""

    def pruned(decoder: Decoder) -> Pruned:
        span = Span(1, 3)
        module = make(kind, decoder, span, **options)
        return Pruned(Plan.replace(decoder.n_layers, span, kind), {1: module})

    return pruned


def sublayers(decoder: Decoder) -> Pruned:
    steps = (Step(0, "no-attention"), Step(1, "no-mlp"), Step(3))
    kept = {n: remove_sublayer(decoder, n, part) for n, part in enumerate(("attention", "mlp"))}
    return Pruned(Plan(4, steps), kept)


KINDS: dict[str, Callable[[Decoder], Pruned]] = {
    "drop": lambda decoder: Pruned(Plan.drop(4, [0, 2])),
    "layer": replaced("layer", init="mean"),
    "ffn": replaced("ffn"),
    "shared-layer": replaced("shared-layer", init="first"),
    "multiple-swiglu": replaced("multiple-swiglu"),
    "sublayers": sublayers,
}


@pytest.fixture
def saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    def write(kind: str, family: str = "llama") -> tuple[Path, Decoder, int]:
        dense = Decoder(tiny_model(family, n_layers=4))
        pruned = KINDS[kind](dense)
        folder = save(pruned, dense, tokenizer, tmp_path / "saved", {}, verify=False)
        return folder, Decoder(assemble(pruned.path(dense))), pruned.n_parameters(dense)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_as_it_was_saved(kind: str, saved: Any) -> None:
    folder, wanted, n_parameters = saved(kind)
    found = agreed(folder)
    assert isinstance(found[0], torch.Tensor), found
    torch.testing.assert_close(found[0], logits(wanted), rtol=0, atol=1e-5)
    assert found[1] == n_parameters


@pytest.mark.parametrize("kind", ["ffn", "shared-layer"])
def test_a_checkpoint_is_accounted_for_too(kind: str, saved: Any) -> None:
    folder, *_ = saved(kind)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"model.layers.1.more": torch.ones(2)}, weights, {"format": "pt"})
    refused(agreed(folder), r"left over: 'model\.layers\.1\.more'")
    name = next(name for name in tensors if name.startswith("model.layers.1."))
    shape = list(tensors[name].shape)
    save_file(tensors | {name: torch.ones(3)}, weights, {"format": "pt"})
    refused(agreed(folder), rf"'{name}' is \[3\], the config needs \[{shape[0]}")
    del tensors[name]
    save_file(tensors, weights, {"format": "pt"})
    refused(agreed(folder), rf"missing: '{name}'")
