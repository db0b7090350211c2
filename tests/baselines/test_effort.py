"""What methods tell of their search is what a counter of products sees while they search."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamline.engine.decoder import Decoder
from streamline.engine.kernels import FastLinears
from streamline.method import Pruned
from streamline.methods.refit import refit_effort, refitted
from streamline.plan import Plan
from streamline.registry import build_method, method_names
from streamline.testing.models import tiny_config, tiny_model

SHAPE, LAYERS, SPARSITY = (4, 32), 8, 0.3
WIDE = {"hidden_size": 96, "intermediate_size": 192, "n_layers": LAYERS}
PRODUCTS = ("aten.mm", "aten.addmm")  # of weights; products of attention are no part of the count
SLOW = ("blockpruner", "sleb", "prune-and-comp+", "llm-pruner+")  # to search, not to plan
SEARCHED = [
    *(name for name in method_names(["all"]) if name != "evopress"),
    "llm-streamline-none+criterion=perplexity",
    "prune-and-comp+criterion=loss",
    "llm-pruner+importance=param_mix",
    "blockpruner+width=3",
    "evopress+generations=2+initial=6+offspring=6",
    "evopress+generations=2+initial=6+offspring=6+unit=layer",
    "replaceme+objective=cosine",
    "quantized",
    "llm-streamline-ffn+init=weighted",
    "llm-streamline-ffn+init=linear+n_replacements=2",
    "llm-streamline-none+refit=true",
    "sleb+refit=true",
]
# What LaCo, Prune&Comp and refitting run depends on what they find; EvoPress is planned by one
# generation.
WITHIN = {"laco": 3.0, "evopress": 1.5, "prune-and-comp": 1.4, "llm-streamline-none+refit": 2.2}


def counted(method, decoder: Decoder, tokens: torch.Tensor) -> tuple[float, float]:
    """Operations in products of weights while a method calibrates, and while it prunes."""
    found = []
    with FlopCounterMode(display=False) as counter:
        calibration = method.calibrate(decoder, tokens)
    found.append(counter)
    with FlopCounterMode(display=False) as counter:
        method.prune(decoder, calibration, SPARSITY, tokens, 0)
    found.append(counter)
    totals = []
    for one in found:
        by_name = {str(op): n for op, n in one.get_flop_counts().get("Global", {}).items()}
        totals.append(float(sum(by_name.get(name, 0) for name in PRODUCTS)))
    return totals[0], totals[1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(SLOW)) for n in SEARCHED],
)
def test_the_effort_is_what_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastLinears, "active", lambda _: nullcontext())  # as the counter knows them
    model = tiny_model("llama", **WIDE).eval()
    decoder, shape = Decoder(model), Decoder.from_config(tiny_config("llama", **WIDE))
    method = build_method(name)
    if method.unsupported(decoder):
        pytest.skip("it needs a model that is not there")
    told = method.effort(shape, SPARSITY, SHAPE)
    assert told is not None
    tokens = torch.randint(0, 256, SHAPE, generator=torch.Generator().manual_seed(0))
    calibrated, pruned = counted(method, decoder, tokens)
    within = next((w for start, w in WITHIN.items() if name.startswith(start)), 1.25)
    assert told.calibrate == pytest.approx(calibrated, rel=within - 1)
    whole, seen = told.calibrate + told.prune, calibrated + pruned
    assert seen / within <= whole <= seen * within, (told, calibrated, pruned)
    if pruned > 0.1 * calibrated:
        assert pruned / within <= told.prune <= pruned * within


def test_refitting_behind_a_known_gap_is_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastLinears, "active", lambda _: nullcontext())
    decoder = Decoder(tiny_model("llama", **WIDE).eval())
    tokens = torch.randint(0, 256, SHAPE, generator=torch.Generator().manual_seed(0))
    for gone in ([1, 2], [4, 5, 6]):
        with FlopCounterMode(display=False) as counter:
            refitted(decoder, Pruned(Plan.drop(LAYERS, gone)), tokens)
        by_name = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        seen = sum(by_name.get(name, 0) for name in PRODUCTS)
        told = refit_effort(decoder, len(gone), gone[0], SHAPE)
        assert told.prune == pytest.approx(seen, rel=0.2) and told.algebra > 0
    assert refit_effort(decoder, 0, 1, SHAPE).prune == 0


def test_a_method_that_measures_for_itself_and_does_not_tell_is_not_guessed() -> None:
    from streamline.baselines.last_layers import LastLayers

    class Quiet(LastLayers):
        def calibrate(self, decoder, batches):
            return super().calibrate(decoder, batches)

    decoder = Decoder(tiny_model("llama", n_layers=4))
    assert LastLayers().effort(decoder, 0.25, SHAPE) is not None
    assert Quiet().effort(decoder, 0.25, SHAPE) is None
