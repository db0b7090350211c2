"""The search's answer is that of scoring every trial in full, and its bounds are bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamline.engine import head
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path, dense_path
from streamline.errors import ConfigError, NotFiniteError
from streamline.method import Pruned
from streamline.methods import loss_search
from streamline.methods.loss import score_paths
from streamline.methods.loss_search import LossSearch
from streamline.plan import Plan

TOKENS = torch.randint(0, 256, (5, 11), generator=torch.Generator().manual_seed(1))


def trials(decoder: Decoder) -> list[Path]:
    return [Pruned(Plan.drop(decoder.n_layers, [i])).path(decoder) for i in range(decoder.n_layers)]


def sharpened(model: nn.Module, layer: int) -> Decoder:
    """A decoder with sharp predictions and one layer that hardly does anything."""
    decoder = Decoder(model)
    with torch.no_grad():
        submodule(model, decoder.family.head).weight.mul_(20)
        for name, weight in decoder.layers[layer].named_parameters():
            if "norm" not in name:
                weight.mul_(0.03)
    return decoder


@pytest.fixture(params=["tiny_llama", "tiny_opt", "tiny_qwen3"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return sharpened(request.getfixturevalue(request.param)(n_layers=6), 3)


@pytest.mark.parametrize("batch_tokens", [22, 4096])
def test_finds_what_scoring_all_finds(decoder: Decoder, batch_tokens: int) -> None:
    search = LossSearch([dense_path(decoder)], TOKENS, batch_tokens=batch_tokens)
    for _ in range(2):  # the second round has rows of the head to start from
        found = search.least(trials(decoder))
        every = score_paths(trials(decoder), TOKENS, batch_tokens=batch_tokens)
        assert found.index == min(range(6), key=every.losses.__getitem__)
        assert found.loss == pytest.approx(every.losses[found.index], abs=1e-6)
        assert found.layer_runs == every.layer_runs
        assert found.naive_layer_runs == every.naive_layer_runs
        for some, loss in zip(found.losses, every.losses, strict=True):
            assert some is None or some == pytest.approx(loss, abs=1e-6)


def test_the_whole_head_runs_only_for_what_could_be_best(
    tiny_llama: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "chunk_rows", lambda *_, **__: 10)
    decoder = sharpened(tiny_llama(n_layers=6), 3)
    sizes: list[int] = []
    submodule(decoder.model, decoder.family.head).register_forward_hook(
        lambda _m, _a, out: sizes.append(out.shape[-1])
    )
    search = LossSearch([dense_path(decoder)], TOKENS)
    found = search.least(trials(decoder))
    n_whole = sum(loss is not None for loss in found.losses)
    assert 1 <= n_whole < 6
    assert sizes.count(decoder.config.vocab_size) == 5 * n_whole
    assert sizes.count(decoder.config.vocab_size // 12) == 5 * 6
    sizes.clear()
    assert None not in search.least(trials(decoder), all_losses=True).losses
    assert set(sizes) == {decoder.config.vocab_size}


def test_bounds_lie_below_the_losses_and_reach_them_with_the_whole_vocabulary(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = score_paths(trials(decoder), TOKENS).losses
    gaps = []
    with torch.no_grad():
        for cut in (16, 2, 1):
            monkeypatch.setattr(loss_search, "HEAD_DIVISOR", cut)
            search = LossSearch([dense_path(decoder)], TOKENS)
            ends = search._ends(trials(decoder))
            search._whole(ends[0], learn=True)
            bounds = search._bounds(ends)
            gaps.append([loss - bound for loss, bound in zip(every, bounds, strict=True)])
    assert all(gap > 1e-6 for gap in gaps[0])
    assert all(a >= b - 1e-6 for a, b in zip(gaps[0], gaps[1], strict=True))
    assert gaps[2] == pytest.approx([0.0] * 6, abs=1e-5)


def test_equal_paths_and_what_is_no_number(decoder: Decoder) -> None:
    search = LossSearch([dense_path(decoder)], TOKENS)
    path = dense_path(decoder)
    assert search.least([path, path, path]).index == 0
    broken = Decoder(decoder.model)
    nan = nn.Module()
    nan.forward = lambda hidden, *_, **__: hidden * float("nan")  # type: ignore[method-assign]
    nodes = path.nodes
    bad = Path(decoder, (*nodes[:2], type(nodes[2])(nan, 2), *nodes[3:]))
    assert broken.n_layers == 6
    for every in (False, True):
        with pytest.raises(NotFiniteError, match=r"sequence 0 is not finite: .*layer 2 \(the Modu"):
            search.least([path, path, bad], all_losses=every)


@pytest.mark.parametrize("why", ["hooked", "memory", "subclass"])
def test_without_bounds_all_are_scored(
    tiny_llama: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    decoder = sharpened(tiny_llama(n_layers=6), 3)
    if why == "memory":
        monkeypatch.setattr(loss_search, "KEEP_BYTES", 100)
    elif why == "hooked":
        decoder.model.lm_head._hf_hook = None
    else:
        decoder.model.lm_head.__class__ = type("Other", (nn.Linear,), {})
    found = LossSearch([dense_path(decoder)], TOKENS).least(trials(decoder))
    assert found.losses == pytest.approx(score_paths(trials(decoder), TOKENS).losses)


def test_the_head_is_as_before_afterwards(decoder: Decoder) -> None:
    head = submodule(decoder.model, decoder.family.head)
    LossSearch([dense_path(decoder)], TOKENS).least(trials(decoder))
    assert "forward" not in head.__dict__
    with pytest.raises(RuntimeError, match="stop"), loss_search._cut(head, torch.tensor([3, 5])):
        assert head(torch.zeros(1, head.in_features)).shape == (1, 2)
        raise RuntimeError("stop")
    assert "forward" not in head.__dict__


def test_too_short_sequences_are_refused(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 tokens, got a batch of \[5, 1\]"):
        LossSearch([dense_path(decoder)], TOKENS[:, :1])
