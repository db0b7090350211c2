"""Variants that differ in their recovery alone are decided once, and are as each alone would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Broken
from torch import Tensor

from streamline.api.pruning import prune
from streamline.api.variants import Dense, Failure, Target, Variant, unsupported_reason
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.method import Method, Pruned
from streamline.progress import Silent
from streamline.registry import METHODS, available, build_method
from streamline.sharing.once import sharing
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training import lora

RECOVERIES = ("none", "lora", "kd")
TRAINABLE = [
    name
    for name in sorted(available(METHODS))
    if name != "dense" and build_method(name).trainable and build_method(name).in_all
]


def dense_of(family: str = "llama") -> Dense:
    decoder = Decoder(tiny_model(family, n_layers=6))
    return Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint=family)


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(seed))


def targets(method: Method, *recoveries: str) -> list[Target]:
    return [
        Target(label=f"one-{kind}", method=method, sparsity=0.3, recovery=kind, shares="one")
        for kind in recoveries
    ]


def variants(
    method: Method, dense: Dense, folder: Path, *recoveries: str, expected: type = Variant
) -> list[Any]:
    found = prune(targets(method, *recoveries), dense, tokens, folder, Silent())
    assert all(isinstance(one, expected) for one in found), found
    return found


def logits(found: Variant, dense: Dense) -> Tensor:
    with torch.no_grad():
        return assemble(found.pruned.path(dense.decoder))(tokens(1)).logits


def untimed(found: Variant) -> dict[str, Any]:
    """Its notes, without how long they took."""
    return {name: value for name, value in found.pruned.notes.items() if name != "seconds"}


def own(found: Variant) -> list[Tensor]:
    """All tensors that a variant brings, in order."""
    modules = [*found.pruned.modules.values(), *(s.module for s in found.pruned.students)]
    modules += [found.pruned.model] if found.pruned.model is not None else []
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Method]], list[Method]]:
    """``counted(cls)``: a list that has the method for every decision from now on."""

    def watch(cls: type[Method]) -> list[Method]:
        decided, decide = list[Method](), cls.prune

        def noted(self: Method, *args: Any, **kwargs: Any) -> Pruned:
            decided.append(self)
            return decide(self, *args, **kwargs)

        monkeypatch.setattr(cls, "prune", noted)
        return decided

    return watch


def test_one_decision_serves_every_recovery(tmp_path, counted):
    dense, seen = dense_of(), 0
    for name in TRAINABLE:
        method = build_method(name)
        if unsupported_reason(method, dense.decoder, 0.3, recovery="lora"):
            continue
        seen += 1
        (alone,) = variants(method, dense, tmp_path / "alone", "lora")
        decided = counted(type(method))
        shared = variants(method, dense, tmp_path / "shared", *RECOVERIES)
        assert decided == [method], name
        first = shared[0]
        for found, kind in zip(shared, RECOVERIES, strict=True):
            assert found.target.recovery == kind and found.costs == first.costs
            assert found.pruned.plan == alone.pruned.plan
            assert untimed(found) == untimed(alone)
            assert list(found.pruned.modules) == list(alone.pruned.modules)
            flags = [[t.requires_grad for t in own(one)] for one in (found, alone)]
            assert flags[0] == flags[1], name
            assert len(own(found)) == len(own(alone))
            assert all(map(torch.equal, own(found), own(alone))), name
            assert torch.equal(logits(found, dense), logits(alone, dense)), name
    assert seen > 15


@pytest.mark.parametrize("name", ["replaceme", "linearpatch", "slicegpt", "2ssp"])
def test_recovery_of_one_changes_none_of_the_others(tmp_path, name):
    dense = dense_of()
    found = variants(build_method(name), dense, tmp_path, *RECOVERIES)
    before = [logits(one, dense) for one in found]
    second = found[1].pruned
    made = lora.fine_tune(
        second.model or assemble(second.path(dense.decoder)), tokens(0), token_budget=1_024
    )
    with torch.no_grad():
        assert not torch.equal(made.model(tokens(1)).logits, before[1])
    for place in (0, 2):
        assert torch.equal(logits(found[place], dense), before[place])


def test_networks_that_are_to_be_trained_are_each_variants_own(tmp_path):
    dense = dense_of()
    first, second = variants(build_method("llm-streamline-layer"), dense, tmp_path, "none", "lora")
    before = logits(first, dense)
    student = second.pruned.students[0].module
    assert student is next(iter(second.pruned.modules.values()))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(first, dense), before)
    assert not torch.equal(logits(second, dense), before)


@pytest.mark.parametrize("name", ["sleb", "blockpruner", "linearpatch"])
def test_what_is_kept_serves_another_process_with_another_recovery(tmp_path, counted, name):
    method, dense, again = build_method(name), dense_of(), dense_of()
    (first,) = variants(method, dense, tmp_path, "none")
    decided = counted(type(method))
    (second,) = variants(method, again, tmp_path, "lora")
    assert decided == [] and second.costs == first.costs
    assert torch.equal(logits(second, again), logits(first, dense))


def test_a_decision_that_fails_fails_once_for_all(tmp_path, counted):
    decided, method = counted(Broken), Broken()
    found = variants(method, dense_of(), tmp_path, *RECOVERIES, expected=Failure)
    assert decided == [method]
    assert [str(one.error) for one in found] == ["no scores"] * 3
    assert [one.target.recovery for one in found] == list(RECOVERIES)


def test_processes_decide_in_turn(tmp_path, monkeypatch):
    method, claims = build_method("sleb"), tmp_path / "claims"
    decide, held = type(method).prune, list[str]()

    def noted(self: Any, *args: Any, **kwargs: Any) -> Pruned:
        held.extend(path.name for path in claims.iterdir())
        return decide(self, *args, **kwargs)

    monkeypatch.setattr(type(method), "prune", noted)
    with sharing(claims):
        variants(method, dense_of(), tmp_path, *RECOVERIES)
    assert [name.startswith("pruning-") for name in held] == [True]
    assert list(claims.iterdir()) == []
