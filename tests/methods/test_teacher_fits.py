"""Fits to the dense model's states: one pass for all, and the same numbers as alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamline.api.pruning import prune
from streamline.api.variants import Dense, Target, Variant
from streamline.baselines.replaceme import FoldFit, ReplaceMe, StatesFit, fit, fold
from streamline.engine.decoder import Decoder
from streamline.methods import teacher_fits
from streamline.methods.linear_map import LinearFit
from streamline.methods.llm_streamline import StreamlineFFN
from streamline.methods.teacher_fits import Fit, fitted, together
from streamline.plan import Span
from streamline.progress import Silent
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENS = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(0))


def sums(fit: Fit) -> list[Any]:
    if isinstance(fit, LinearFit):
        return [fit.moments.xtx, fit.moments.xt_step, fit.moments.sum_x]
    if isinstance(fit, StatesFit):
        return [part for row in fit.rows for part in row]
    assert isinstance(fit, FoldFit)
    return [fit.gram, fit.moment, fit.squares]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_fits_in_one_pass_are_those_made_alone_to_the_bit(family: str) -> None:
    decoder = Decoder(tiny_model(family, n_layers=5))

    def all_fits() -> list[Fit]:
        spans = [Span(1, 3), Span(2, 4), Span(1, 4), Span(3, 4)]
        kinds = (LinearFit, partial(LinearFit, weighted=True), FoldFit, StatesFit)
        return [kind(span) for span in spans for kind in kinds]

    with together(decoder, all_fits(), TOKENS):
        shared = fitted(decoder, all_fits(), TOKENS)
    for one, other in zip(all_fits(), shared, strict=True):
        (alone,) = fitted(decoder, [one], TOKENS)
        assert alone is not other
        for mine, wanted in zip(sums(other), sums(alone), strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_neox", "bloom"])
def test_a_folded_map_has_the_error_that_is_foretold(family: str) -> None:
    """Also where a layer adds its attention to what the MLP gave in place."""
    decoder, span = Decoder(tiny_model(family, n_layers=4)), Span(2, 3)
    transform, told = fit(decoder, TOKENS, span, ridge=1e-3)
    folded = fold(decoder, 1, transform)
    with torch.no_grad():
        entry = decoder.enter(TOKENS)
        before, _, after = (s.double() for depth, s in decoder.trace(entry, 3) if depth)
        found = decoder.run(folded, before.float(), entry, 1).double()
    error = (found - after).square().sum() / after.square().sum()
    assert float(error) == pytest.approx(told["error"], rel=1e-4)
    assert told["error"] < told["error_dropped"]


def test_other_tokens_or_models_are_not_taken_from_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, other = (Decoder(tiny_model("llama", n_layers=3, seed=seed)) for seed in (0, 1))
    passes, original = [], teacher_fits.run
    monkeypatch.setattr(
        teacher_fits, "run", lambda *args, **more: passes.append(1) or original(*args, **more)
    )
    with together(decoder, [LinearFit(Span(1, 2))], TOKENS):
        fitted(decoder, [LinearFit(Span(1, 2))], TOKENS.clone())
        assert len(passes) == 1
        fitted(decoder, [LinearFit(Span(1, 2))], TOKENS + 1)
        fitted(other, [LinearFit(Span(1, 2))], TOKENS)
        fitted(decoder, [LinearFit(Span(0, 2))], TOKENS)
        assert len(passes) == 4
    fitted(decoder, [LinearFit(Span(1, 2))], TOKENS)
    assert len(passes) == 5


def targets(*sparsities: float) -> list[Target]:
    methods = [
        StreamlineFFN(init="linear"),
        StreamlineFFN(init="linear", residual=True),
        ReplaceMe(),
    ]
    return [
        Target(label=f"{index}-{sparsity}", method=method, sparsity=sparsity)
        for index, method in enumerate(methods)
        for sparsity in sparsities
    ]


def pruned(
    decoder: Decoder, wanted: list[Target], folder: Path, *, apart: bool = False
) -> list[Variant]:
    dense = Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="tiny")
    made = prune(wanted, dense, lambda seed: TOKENS, folder, Silent(), apart=apart)
    assert all(isinstance(one, Variant) for one in made), made
    return made  # type: ignore[return-value]


def test_all_cells_of_a_model_share_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=8))
    counted: list[nn.Module] = []
    run = Decoder.run

    def watched(self: Decoder, module: nn.Module, *args: Any) -> Tensor:
        counted.append(module)
        return run(self, module, *args)

    monkeypatch.setattr(Decoder, "run", watched)
    pruned(decoder, targets(0.2)[:1], tmp_path / "warm")  # calibrates and fits once
    once = len(counted)
    counted.clear()
    wanted = targets(0.2, 0.4)
    together_made = pruned(decoder, wanted, tmp_path / "together")
    assert len(counted) <= once + 2, "the second span may reach some layers deeper"
    assert max(map(counted.count, decoder.layers)) == 2, "once to calibrate, once to fit"
    for target, found in zip(wanted, together_made, strict=True):
        (alone,) = pruned(decoder, [target], tmp_path / f"alone-{target.label}")
        assert alone.pruned.plan == found.pruned.plan
        for index, module in alone.pruned.modules.items():
            other = found.pruned.modules[index].state_dict()
            for name, value in module.state_dict().items():
                assert torch.equal(value, other[name]), (target.label, name)
        assert found.costs["calibrate_s"] > 0
    counted.clear()
    apart = pruned(decoder, wanted, tmp_path / "apart", apart=True)
    assert max(map(counted.count, decoder.layers)) == 1 + len(wanted)
    assert [one.pruned.plan for one in apart] == [one.pruned.plan for one in together_made]


def test_one_that_fails_leaves_the_others_their_pass(tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    bad = Target(label="bad", method=StreamlineFFN(init="linear", runner_up=9), sparsity=0.2)
    dense = Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="tiny")
    made = prune([bad, *targets(0.2)], dense, lambda seed: TOKENS, tmp_path, Silent())
    assert [isinstance(one, Variant) for one in made] == [False, True, True, True]
