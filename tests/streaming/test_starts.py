"""What replaces layers of a streamed model starts as beside a model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import THREE
from torch import Tensor

from streamline.api.pruning import prune
from streamline.api.variants import Dense, Failure, Target, Variant
from streamline.baselines._magnitudes import MagnitudeFit
from streamline.baselines.linearpatch import _rotation
from streamline.baselines.replaceme import FoldFit, StatesFit
from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.methods.linear_map import LinearFit
from streamline.methods.replacement import INITS, make
from streamline.methods.teacher_fits import Fit, fitted
from streamline.plan import Span
from streamline.progress import Silent
from streamline.registry import build_method
from streamline.streaming.decoder import StreamedDecoder
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENS = torch.randint(0, 256, (7, 24), generator=torch.Generator().manual_seed(1))
LAYERS = [f"{prefix}layer" for prefix in ("", "shared-", "multiple-")]
METHODS = (
    "llm-streamline-layer+init=last", "llm-streamline-layer+init=mean+n_replacements=2",
    "llm-streamline-layer+share=0", "streamline-v1-layer", "streamline-v1-layer-shared+init=mean",
    "llm-streamline-ffn+init=linear", "llm-streamline-ffn+init=weighted+residual=true",
    "llm-streamline-ffn+init=linear+share=0+n_replacements=2",
    "llm-streamline-ffn+init=linear+criterion=perplexity", "streamline-v1-mlp+init=weighted",
    "linearpatch", "linearpatch+rotation=none", "replaceme", "replaceme+objective=cosine",
)  # fmt: skip


@pytest.fixture(params=[*THREE, "olmoe"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(family: str, tmp_path: Path) -> Iterator[tuple[Decoder, StreamedDecoder]]:
    """A model in memory, and the same layer by layer, its states mostly on disk."""
    model = tiny_model(family, n_layers=6)
    model.save_pretrained(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model", model.config, state_bytes=20_000, scratch=tmp_path)
    streamed.model.set_attn_implementation(model.config._attn_implementation)
    with streamed.source:
        yield Decoder(model), streamed


def same(left: Any, right: Any) -> bool:
    """Whether values are alike, tensors to the last bit."""
    if isinstance(left, Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def reads(decoder: StreamedDecoder) -> list[int]:
    """How often each layer was read; each of its weights as often."""
    found = []
    for layer in decoder.layers:
        counts = {decoder.source.reads[str(decoder.key_of(p))] for p in layer.parameters()}
        (count,) = counts
        found.append(count)
    return found


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_starts_from_the_stored_ones(
    both: tuple[Decoder, StreamedDecoder], kind: str
) -> None:
    whole, streamed = both
    for init in INITS["layer"]:
        before = reads(streamed)
        wanted, found = (make(kind, d, Span(1, 4), init=init, seed=3) for d in both)
        assert same(dict(wanted.state_dict()), dict(found.state_dict())), init
        assert all(p.dtype == torch.float32 and p.requires_grad for p in found.parameters())
        assert not streamed.layers_of(found), "it is no layer that has to be read again"
        assert all(p.is_meta for layer in streamed.layers for p in layer.parameters())
        needed = {"last": {3}, "mean": {1, 2, 3}}.get(init, {1})
        needed = {1, 2, 3} if kind == "multiple-layer" else needed
        new = [now - then for now, then in zip(reads(streamed), before, strict=True)]
        assert {index for index, count in enumerate(new) if count} == needed
        assert max(new) == 1


def sums(fit: Fit) -> list[Any]:
    """What a fit has summed."""
    if isinstance(fit, LinearFit):
        return list(vars(fit.moments).values())
    if isinstance(fit, StatesFit):
        return fit.rows
    if isinstance(fit, MagnitudeFit):
        return [fit.ratios]
    assert isinstance(fit, FoldFit)
    return [fit.gram, fit.moment, fit.squares]


def test_sums_are_those_of_the_model_in_memory_and_take_one_pass(
    both: tuple[Decoder, StreamedDecoder],
) -> None:
    whole, streamed = both

    def all_fits() -> list[Fit]:
        spans = [Span(1, 3), Span(2, 4), Span(1, 4), Span(3, 4)]
        weighted, turned = partial(LinearFit, weighted=True), partial(MagnitudeFit, turn=_rotation)
        kinds = (LinearFit, weighted, FoldFit, StatesFit, MagnitudeFit, turned)
        return [*(kind(span) for span in spans for kind in kinds), LinearFit(Span(0, 2))]

    wanted, found = (fitted(d, all_fits(), TOKENS, batch_tokens=48) for d in both)
    for one, other in zip(wanted, found, strict=True):
        assert same(sums(one), sums(other)), one.key
    assert reads(streamed) == [1, 1, 1, 1, 0, 0], "no deeper than needed"
    assert streamed.state_file_bytes > 0
    assert not any(layer._forward_hooks for layer in streamed.model.modules())


def target(spec: str, sparsity: float) -> Target:
    return Target(label=f"{spec} {sparsity}", method=build_method(spec), sparsity=sparsity)


def dense_of(decoder: Decoder) -> Dense:
    return Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="tiny")


@pytest.mark.parametrize("family", ["llama", "opt"], indirect=True)
def test_methods_make_the_same_of_either_and_share_a_pass(
    both: tuple[Decoder, StreamedDecoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # what trains needs several; nothing is trained here

    def made(decoder: Decoder) -> list[Variant | Failure]:
        targets = [target(spec, 0.3) for spec in METHODS]
        dense = dense_of(decoder)
        return prune(targets, dense, lambda seed: TOKENS, tmp_path / str(id(decoder)), Silent())

    for wanted, found in zip(*map(made, both), strict=True):
        assert isinstance(wanted, Variant) and isinstance(found, Variant), found
        label, left, right = wanted.target.label, wanted.pruned, found.pruned
        assert left.plan == right.plan, label
        assert same(left.notes, right.notes), label
        assert [s.span for s in left.students] == [s.span for s in right.students], label
        assert list(left.modules) == list(right.modules), label
        for index, module in left.modules.items():
            assert same(dict(module.state_dict()), dict(right.modules[index].state_dict())), label


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_cells_that_are_mapped_share_a_pass(
    both: tuple[Decoder, StreamedDecoder], tmp_path: Path
) -> None:
    _, streamed = both
    specs = ("llm-streamline-ffn+init=linear+share=0", "streamline-v1-mlp+init=linear+share=0",
             "llm-streamline-ffn+init=weighted+share=0", "linearpatch")  # fmt: skip
    targets = [target(spec, sparsity) for spec in specs for sparsity in (0.2, 0.4)]
    dense = dense_of(streamed)
    made = prune(targets, dense, lambda seed: TOKENS, tmp_path / "cache", Silent())
    assert all(isinstance(one, Variant) for one in made), made
    deepest = max(max(one.pruned.plan.removed_layers) for one in made if isinstance(one, Variant))
    passes = [one.method.effort(streamed, one.sparsity, (7, 24)).passes for one in targets]  # type: ignore[union-attr]
    assert passes == [1] * len(targets), "each by itself would read the layers once more"
    calibrated = [1] * 6
    assert reads(streamed) == [n + (i <= deepest) for i, n in enumerate(calibrated)]


@pytest.mark.parametrize("family", ["opt"], indirect=True)
def test_a_failed_read_of_a_layer_leaves_nothing_behind(
    both: tuple[Decoder, StreamedDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed = both

    def broken(*_: object) -> Tensor:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(streamed.source, "read", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            make("layer", streamed, Span(1, 3), init="mean")
    assert all(p.is_meta for layer in streamed.layers for p in layer.parameters())
    assert measure(streamed, TOKENS).n_layers == 6
