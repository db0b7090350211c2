"""Weights that are trained by several processes: when each has a part, and how they are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from streamline.distributed import sums
from streamline.distributed.team import Shard, within
from streamline.training.distillation import trainees
from streamline.training.distillation.trainees import divided_among
from streamline.training.parts.shares import Shares
from streamline.training.schedule import training_bytes


@pytest.mark.parametrize(
    ("room", "over_nccl", "wanted"),
    [
        (1.5, True, True),
        (2.5, True, False),
        (1.5, False, False),  # tried as it is: there is no other way
        (0.9, False, True),  # refused with what would help
    ],
)
def test_weights_are_divided_where_they_must_be_and_can_be(
    room: float, over_nccl: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    decoder: Any = SimpleNamespace(device=device, n_parameters=lambda: 1000)
    monkeypatch.setattr(trainees, "room", lambda device: int(room * training_bytes(1000)))
    monkeypatch.setattr(trainees, "shared", lambda work: work())
    monkeypatch.setattr(sums, "gpus", object() if over_nccl else None)
    assert not divided_among(decoder, None)  # alone
    with within(Shard(0, 2)):
        assert divided_among(decoder, None) is wanted
        assert divided_among(decoder, not wanted) is not wanted


def test_no_process_sends_parts_long_before_the_first_one_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares, whole = object.__new__(Shares), mock.MagicMock()
    shares.sizes = {"w": 4}
    monkeypatch.setattr(shares, "whole", lambda name, part: whole)
    with within(Shard(1, 2)):
        assert shares.gathered("w", {"weights/w": torch.ones(2)}) == {}
    whole.flatten()[:1].cpu.assert_called_once()  # waits for the GPUs
