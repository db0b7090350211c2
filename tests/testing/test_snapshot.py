from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from streamline.testing.snapshot import differences, snapshot


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()


def _scale(net: nn.Module) -> None:
    with torch.no_grad():
        net[0].weight.mul_(2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_scale, "the weight 0.weight"),
        (lambda net: net[0].train(), "the training mode of 0"),
        (lambda net: net[1].register_forward_hook(lambda *_: None), "the hooks of 1"),
        (lambda net: net[0].register_forward_pre_hook(lambda *_: None), "the hooks of 0"),
        (lambda net: net(torch.ones(1, 2)).sum().backward(), "the gradient of 0.weight"),
        (lambda net: net[0].requires_grad_(False), "the gradient of 0.weight"),
        (lambda net: net[0].__dict__.update(forward=abs), "the forward of 0"),
        (lambda net: net.append(nn.Linear(1, 1)), "the weight 2.weight"),
        (lambda _: torch.rand(1), "torch's random state"),
        (lambda _: np.random.rand(), "numpy's random state"),
        (lambda _: random.random(), "python's random state"),
    ],
)
def test_each_change_is_named(
    net: nn.Module, change: Callable[[nn.Module], None], name: str
) -> None:
    before = snapshot(net)
    assert differences(before, snapshot(net)) == []
    change(net)
    assert name in differences(before, snapshot(net))
