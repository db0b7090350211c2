"""The norm of gradients of which each process has a part, and layers that run once more."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from streamline.training.parts import shares
from streamline.training.parts.shares import Shares, run_again


class Reads(TorchDispatchMode):
    """Counts numbers that are read one by one."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("most", [0.5, 1e3, float("inf")])
def test_the_norm_of_parts_is_that_of_the_whole(most: float, monkeypatch: Any) -> None:
    sizes = {"a": 5, "b": 0, "c": 7, "d": 3}
    parameters = {name: nn.Parameter(torch.zeros(n)) for name, n in sizes.items()}
    generator = torch.Generator().manual_seed(0)
    for name, one in parameters.items():
        one.grad = None if name == "d" else torch.randn(one.shape, generator=generator)
    before = {name: one.grad.clone() for name, one in parameters.items() if one.grad is not None}
    other = torch.randn(4, generator=generator)  # another process's part
    own = object.__new__(Shares)
    own.parameters = {name: parameters[name] for name in "ab"}

    def reduced(_: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        return [numbers[0] + float(other.double().square().sum())]

    monkeypatch.setattr(shares, "reduced", reduced)
    with Reads() as reads:
        norm = own.clip(parameters, most)
    assert reads.n == 1, "that of the other process"
    wanted = torch.cat([*before.values(), other]).double().norm().item()
    assert norm == pytest.approx(wanted, rel=1e-12)
    factor = min(1.0, most / (wanted + 1e-6))
    for name, one in parameters.items():
        assert (one.grad is None) == (name not in before)
        if one.grad is not None:
            given = before[name]
            assert torch.equal(one.grad, given if factor == 1.0 else given * factor)


def test_a_layer_runs_once_more_for_its_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4))
    layer, ran, said = copy.deepcopy(plain), list[int](), list[str]()
    layer[1].register_forward_hook(lambda *_: ran.append(1))

    @contextmanager
    def again(place: int) -> Iterator[None]:
        said.append(f"again {place}")
        yield

    hidden = torch.randn(3, 4, requires_grad=True)
    out = run_again(layer, lambda: again(len(ran)))(hidden)
    assert len(ran) == 1 and said == []
    out.square().sum().backward()
    assert len(ran) == 2 and said == ["again 0"]  # as it was asked when the layer ran
    wanted = torch.autograd.grad(plain(hidden).square().sum(), list(plain.parameters()))
    for one, gradient in zip(layer.parameters(), wanted, strict=True):
        assert torch.equal(one.grad, gradient)
    with torch.no_grad():
        assert torch.equal(layer(hidden), out) and len(ran) == 3


def test_a_norm_that_is_not_finite_changes_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, float("nan"), 2.0])
    own = object.__new__(Shares)
    own.parameters = {"a": parameter}
    assert own.clip({"a": parameter}, 0.1) != own.clip({"a": parameter}, 0.1)
    assert parameter.grad.tolist()[::2] == [1.0, 2.0]
    parameter.grad = None
    assert own.clip({"a": parameter}, 0.1) == 0.0
