"""Prune&Comp on models whose magnitudes are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamline.baselines._magnitudes import magnitude_ratios
from streamline.baselines.prune_and_comp import PruneAndComp, without
from streamline.baselines.shortgpt import ShortGPT
from streamline.calibration import measure
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.method import Pruned
from streamline.plan import Plan, Span
from streamline.testing.models import tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
NEAR = {"rtol": 1e-3, "atol": 2e-5}  # norms compute in float32
FAMILIES = ("llama", "opt", "gpt2", "gpt_neox", "falcon", "qwen2", "phi3", "mixtral", "olmoe")


def exact(kind: str, **options: Any) -> Decoder:
    """A tiny model in float64 whose norms have no constant to speak of."""
    model = tiny_model(kind, **options).double()
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-15)
    decoder = Decoder(model)
    if decoder.family.mixture:  # the fast way has no float64
        model.set_experts_implementation("eager")
    return decoder


@torch.no_grad()
def scaled_at_the_cut(decoder: Decoder, index: int, factor: float) -> Tensor:
    """Logits without a layer, the residual stream multiplied where it was."""
    entry = decoder.enter(TOKENS)
    hidden = entry.hidden
    for i, layer in enumerate(decoder.layers):
        hidden = hidden * factor if i == index else decoder.run(layer, hidden, entry, i)
    return decoder.leave(hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_factor_reaches_the_cut_and_nothing_else(kind: str, tied: bool):
    decoder = exact(kind, n_layers=4, tied=tied)
    before = snapshot(decoder.model)
    for index in (0, 2, 3):
        model = without(decoder, index, 3.0)
        with torch.no_grad():
            found = model(TOKENS).logits
        torch.testing.assert_close(found, scaled_at_the_cut(decoder, index, 3.0), **NEAR)
        assert model.config.num_hidden_layers == 3
        head = submodule(model, decoder.family.head)
        assert (head.weight is model.get_input_embeddings().weight) == tied
    assert not differences(before, snapshot(decoder.model))


def test_the_magnitude_of_a_layer_that_doubles_its_input_is_given_back():
    decoder = exact("llama", n_layers=4)
    hook = decoder.layers[1].register_forward_hook(lambda _m, args, _out: args[0] * 2)
    try:
        ratios = magnitude_ratios(decoder, TOKENS, Span(1, 2))
        dense = decoder.logits(TOKENS)
    finally:
        hook.remove()
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2.0))
    with torch.no_grad():
        model = without(decoder, 1, float(ratios.mean()))
        torch.testing.assert_close(model(TOKENS).logits, dense, **NEAR)


@torch.no_grad()
def silence(decoder: Decoder, layer: int) -> None:
    for path in (decoder.family.o, decoder.family.mlp_out):
        for parameter in submodule(decoder.layers[layer], path).parameters():
            parameter.zero_()


@pytest.mark.parametrize("criterion", ["influence", "loss"])
def test_layers_that_do_nothing_go_first_and_change_nothing(criterion: str):
    decoder = exact("llama", n_layers=6)
    silence(decoder, 1)
    silence(decoder, 3)
    method = PruneAndComp(criterion=criterion, n_samples=None, length=None)
    pruned = method.prune(decoder, measure(decoder, TOKENS), 0.3, TOKENS, 0)
    order = pruned.notes["order"]
    if criterion == "influence":
        assert set(order[:2]) == {1, 3}
        assert pruned.notes["factors"][:2] == pytest.approx([1.0, 1.0])
    assert pruned.plan == Plan.drop(6, order)
    assert pruned.model is not None and len(Decoder(pruned.model).layers) == 6 - len(order)
    expected = Pruned(Plan.drop(6, order)).n_parameters(decoder)
    assert sum(p.numel() for p in pruned.model.parameters()) == expected


def test_the_choice_is_made_anew_on_the_compensated_model():
    decoder = exact("llama", n_layers=6)
    calibration = measure(decoder, TOKENS)
    pruned = PruneAndComp().prune(decoder, calibration, 0.3, TOKENS, 0)
    alive, current = list(range(6)), decoder
    for layer, factor in zip(pruned.notes["order"], pruned.notes["factors"], strict=True):
        (wanted,) = ShortGPT().select(measure(current, TOKENS), 1).removed_layers
        assert alive[wanted] == layer
        ratio = magnitude_ratios(current, TOKENS, Span(wanted, wanted + 1)).mean()
        assert factor == pytest.approx(float(ratio))
        current = Decoder(without(current, wanted, factor))
        alive.pop(wanted)
    assert pruned.model is not None
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(TOKENS).logits, current.logits(TOKENS))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("gemma3_text", "normalises it"), ("olmo2", "normalises it"), ("bloom", "normalises them")],
)
def test_models_that_undo_the_factor_are_refused(kind: str, words: str):
    assert words in str(PruneAndComp().unsupported(Decoder(tiny_model(kind, n_layers=2))))


def test_what_cannot_be_done_is_refused():
    decoder = exact("llama", n_layers=2)
    with pytest.raises(UnsupportedModelError, match="at most 1 of 2 can be removed"):
        PruneAndComp().prune(decoder, measure(decoder, TOKENS), 0.45, TOKENS, 0)
    with pytest.raises(UnsupportedModelError, match="changes the magnitude of its input by 0.0"):
        without(decoder, 0, 0.0)
