"""Finished prunings are kept: a killed run decides nothing twice, what is read back is equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from damages import DAMAGES
from torch import Tensor, nn

from streamline.api.pruning import prune
from streamline.api.variants import Dense, Target, Variant
from streamline.calibration import Calibration
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.method import DepthMethod, Method, Pruned
from streamline.plan import Plan, Step
from streamline.progress import Silent
from streamline.registry import METHODS, available, build_method
from streamline.testing.models import tiny_model, tiny_tokenizer

DECIDED = [
    name
    for name in sorted(available(METHODS))
    if not (build_method(name).returns_model or build_method(name).trains or name == "dense")
]


def dense_of(family: str) -> Dense:
    decoder = Decoder(tiny_model(family, n_layers=6))
    return Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint=family)


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(seed))


def pruned(method: Method, dense: Dense, folder: Path) -> Variant:
    target = Target(label="one", method=method, sparsity=0.3)
    (found,) = prune([target], dense, tokens, folder, Silent())
    assert isinstance(found, Variant), found.error
    return found


def logits(found: Variant, dense: Dense) -> Tensor:
    with torch.no_grad():
        return assemble(found.pruned.path(dense.decoder))(tokens(1)).logits


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("it was pruned already")


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_finished_pruning_is_only_read(tmp_path, monkeypatch, family):
    dense, again = dense_of(family), dense_of(family)
    for name in DECIDED:
        method = build_method(name)
        if method.unsupported(dense.decoder):
            continue
        first = pruned(method, dense, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(type(method), "prune", never)
            second = pruned(method, again, tmp_path)
        assert second.pruned.plan == first.pruned.plan
        assert second.pruned.notes == first.pruned.notes
        assert second.costs == first.costs
        assert torch.equal(logits(second, again), logits(first, dense)), name
        own = [p for module in second.pruned.modules.values() for p in module.parameters()]
        shared = {id(p) for p in dense.decoder.model.parameters()}
        before = [p for module in first.pruned.modules.values() for p in module.parameters()]
        assert len(own) == len(before)
        same = {id(p) for p in again.decoder.model.parameters()}
        assert [id(p) in same for p in own] == [id(p) in shared for p in before]
        assert [p.requires_grad for p in own] == [p.requires_grad for p in before]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pruning_is_made_again(tmp_path, damage):
    dense, method = dense_of("llama"), build_method("linearpatch")
    first = pruned(method, dense, tmp_path)
    for file in list((tmp_path / "prunings").iterdir()):
        DAMAGES[damage](file)
        assert torch.equal(logits(pruned(method, dense, tmp_path), dense), logits(first, dense))


@dataclass(frozen=True, kw_only=True)
class Scaled(DepthMethod):
    """Makes a layer that no spec describes."""

    name: ClassVar[str] = "scaled"
    paper: ClassVar[str] = "a plugin"

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        steps = (*(Step(i) for i in range(5)), Step(5, "scaled"))
        return Pruned(Plan(6, steps, "scaled"), {5: Half(decoder.layers[5])})

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        raise NotImplementedError


class Half(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(hidden, *args, **kwargs) / 2


def test_modules_that_cannot_be_made_again_are_not_kept(tmp_path):
    dense = dense_of("llama")
    expected = logits(pruned(Scaled(), dense, tmp_path), dense)
    assert torch.equal(logits(pruned(Scaled(), dense, tmp_path), dense), expected)
