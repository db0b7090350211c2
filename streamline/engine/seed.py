"""Random numbers from a seed that leave the global generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomStates", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, then give the global random states back as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield


@dataclass(frozen=True)
class RandomStates:
    """Torch's, numpy's and Python's random states at a moment.

    Attributes:
        torch_states: Of the CPU, then of the CUDA devices if they are in use.
        numpy_state: The legacy generator's.
        python_state: That of :mod:`random`.
    """

    torch_states: tuple[Tensor, ...]
    numpy_state: Any
    python_state: Any

    @classmethod
    def now(cls) -> RandomStates:
        """The states at this moment."""
        cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        states = (torch.get_rng_state(), *cuda)
        return cls(states, np.random.get_state(), random.getstate())

    def same(self) -> bool:
        """Whether they are the same at this moment."""
        now = self.now()
        numpy_states = zip(self.numpy_state, now.numpy_state, strict=True)
        return (
            len(now.torch_states) == len(self.torch_states)
            and all(map(torch.equal, now.torch_states, self.torch_states))
            and all(np.array_equal(old, new) for old, new in numpy_states)
            and now.python_state == self.python_state
        )

    def restore(self) -> None:
        """Make them those of now."""
        cpu, *cuda = self.torch_states
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
