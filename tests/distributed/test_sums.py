"""A sum over GPUs that never ends is not waited for."""

from __future__ import annotations

from typing import Any

import pytest

from streamline.distributed import sums
from streamline.distributed.team import LostProcess


class _Event:
    def __init__(self, queries: int) -> None:
        self.left = queries

    def query(self) -> bool:
        self.left -= 1
        return self.left == 0


class _Timer:
    made: list[_Timer] = []

    def __init__(self, *given: Any) -> None:
        self.given, self.started = given, False
        _Timer.made.append(self)

    def start(self) -> None:
        self.started = True


def test_an_exchange_of_gpus_is_waited_for_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "Timer", _Timer)
    monkeypatch.setattr(sums, "SECONDS", 0.05)
    sums.ended(_Event(3))
    assert not _Timer.made
    with pytest.raises(LostProcess, match="has not ended for 0 seconds: another process is gone"):
        sums.ended(_Event(-1))
    (timer,) = _Timer.made  # a GPU that does not let go does not keep the process
    assert timer.started and timer.given[2] == (2,)


def test_a_broken_exchange_of_gpus_is_a_lost_process() -> None:
    class Broken:
        def query(self) -> bool:
            raise RuntimeError("NCCL")

    with pytest.raises(LostProcess, match="is gone"):
        sums.ended(Broken())
