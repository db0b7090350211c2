"""What a layer took from its index when it was built is still so when its checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY
from torch import Tensor, nn
from transformers import PretrainedConfig

from streamline.checkpoints.checkpoint import read_model, save
from streamline.checkpoints.info import read_info
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_config, tiny_model

IDS = torch.arange(1, 25)[None]
N_LAYERS = 6
#: Settings beside switches by which layers differ.
WINDOWS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "mistral": {"sliding_window": 4},
    "mixtral": {"sliding_window": 4},
    "phi3": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
}


def switches(family: str) -> list[str]:
    """The booleans of a family's config that shape its layers, whatever they mean."""
    other = {*dir(PretrainedConfig()), "use_cache", "tie_word_embeddings", "add_cross_attention"}
    fields = tiny_config(family).to_dict()
    return [name for name, value in fields.items() if type(value) is bool and name not in other]


def shapes() -> list[tuple[str, dict[str, Any]]]:
    """Every family with each of its switches thrown, and with windows."""
    found = []
    for family in EVERY:
        config = tiny_config(family)
        thrown = [{name: not getattr(config, name)} for name in switches(family)]
        found += [(family, change) for change in [{}, *thrown]]
    return [*found, *WINDOWS.items()]


def state(layer: nn.Module) -> dict[str, Any]:
    """Every number, text and switch that a layer's modules hold, but their place in the cache."""
    return {
        f"{name}.{key}": value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None), list, tuple))
        and not key.startswith("_")
        and key not in ("training", "layer_idx", "is_causal", "tuple_output", "times")
    }


def by_index(decoder: Decoder) -> set[str]:
    """Names of what differs between a model's layers."""
    first, *others = map(state, decoder.layers)
    return {name for other in others for name in first if other.get(name) != first[name]}


def loaded(folder: Path) -> Any:
    """A checkpoint's model, with the attention of the tiny models."""
    return read_model(folder, attn_implementation="eager").eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def test_what_depends_on_the_index_is_known() -> None:
    found: dict[str, set[str]] = {}
    for family, changes in shapes():
        decoder = Decoder(tiny_model(family, n_layers=N_LAYERS, **changes))
        found.setdefault(family, set()).update(by_index(decoder))
    windows = {"self_attn.layer_type", "self_attn.sliding_window"}
    assert {family: names for family, names in found.items() if names} == {
        "gemma2": windows,
        "gemma3_text": windows | {"self_attn.is_sliding"},
        "gpt2": {"attn.scaling"},
        "qwen2": windows,
        "qwen3": windows,
    }


@pytest.mark.parametrize(("family", "changes"), shapes(), ids=str)
def test_kept_layers_are_loaded_as_they_were_built(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    decoder = Decoder(tiny_model(family, n_layers=N_LAYERS, **changes))
    kept = [1, 3, 4]
    pruned = Pruned(Plan.drop(N_LAYERS, [0, 2, 5]))
    wanted = [state(decoder.layers[i]) for i in kept]
    expected = logits(assemble(pruned.path(decoder)))
    model = loaded(save(pruned, decoder, None, tmp_path / "c", {}, verify=False))
    assert [state(layer) for layer in Decoder(model).layers] == wanted
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def last(decoder: Decoder) -> Pruned:
    """Layers 1 and 2 replaced by one that starts as layer 2."""
    module = make("layer", decoder, Span(1, 3), init="last")
    return Pruned(Plan.replace(decoder.n_layers, Span(1, 3), "layer"), {1: module})


def shared(decoder: Decoder) -> Pruned:
    """Layers 1 and 2 replaced by one, applied twice."""
    module = make("shared-layer", decoder, Span(1, 3), init="last")
    return Pruned(Plan.replace(decoder.n_layers, Span(1, 3), "shared-layer"), {1: module})


DEPENDENT = [
    ("gemma2", WINDOWS["gemma2"]),
    ("gemma3_text", WINDOWS["gemma3_text"]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("qwen3", WINDOWS["qwen3"]),
]


@pytest.mark.parametrize("replace", [last, shared])
@pytest.mark.parametrize(("family", "changes"), DEPENDENT, ids=str)
def test_a_layer_that_runs_in_another_place_keeps_its_own(
    family: str, changes: dict[str, Any], replace: Callable[[Decoder], Pruned], tmp_path: Path
) -> None:
    decoder = Decoder(tiny_model(family, n_layers=N_LAYERS, **changes))
    built = assemble(replace(decoder).path(decoder))
    wanted = [state(layer) for layer in Decoder(built).layers]
    folder = save(replace(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    model = loaded(folder)
    assert [state(layer) for layer in Decoder(model).layers] == wanted
    torch.testing.assert_close(logits(model), logits(built), rtol=0, atol=1e-5)
    again = Decoder(model)
    pruned = Pruned(Plan.drop(again.n_layers, [0]))
    twice = loaded(save(pruned, again, None, tmp_path / "again", {}, verify=False))
    assert [state(layer) for layer in Decoder(twice).layers] == wanted[1:]


def test_a_streamed_model_saves_what_its_layers_were_built_with(tmp_path: Path) -> None:
    whole = tiny_model("gpt2", n_layers=N_LAYERS, scale_attn_by_inverse_layer_idx=True)
    whole.save_pretrained(tmp_path / "model")
    pruned = Pruned(Plan.drop(N_LAYERS, [0, 2]))
    decoder = open_streamed(tmp_path / "model", whole.config)
    with decoder.source:
        folder = save(pruned, decoder, None, tmp_path / "c", {}, verify=False)
    model = loaded(folder)
    expected = logits(assemble(pruned.path(Decoder(whole))))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert not read_info(folder).plain
    opened = open_streamed(folder, model.config)
    with opened.source:
        wanted = [state(layer) for layer in Decoder(model).layers]
        assert [state(layer) for layer in opened.layers] == wanted
