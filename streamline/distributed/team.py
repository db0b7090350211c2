"""Who works together: this process's part, and what the launcher says of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from streamline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "UNSET",
    "WHOLE",
    "LostProcess",
    "Shard",
    "follows",
    "interleaved",
    "leads",
    "local",
    "own_gpu",
    "own_rank",
    "team",
    "within",
    "world_size",
]

Item = TypeVar("Item")


class LostProcess(BaseException):
    """Another process of the team is gone, and nothing more can be done together.

    Not an ``Exception``: what keeps the failure of one cell from the others does not hold it back.
    """


@dataclass(frozen=True)
class Shard:
    """One process's part of the work.

    Attributes:
        rank: Its number, from 0.
        size: Processes in all.
    """

    rank: int = 0
    size: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every ``size``-th item from ``rank`` on: the whole, where there is one process."""
        return items[self.rank :: self.size]

    def rows(self, tensor: Tensor) -> Tensor:
        """The same of a tensor's rows; there may be none."""
        return tensor[self.rank :: self.size]


WHOLE = Shard()
_team: ContextVar[Shard | None] = ContextVar("team", default=None)


def team() -> Shard:
    """This process's part of the work; :data:`WHOLE` outside a team."""
    return _team.get() or WHOLE


def leads() -> bool:
    """Whether this process is the one that reads and writes files."""
    return team().rank == 0


@contextmanager
def within(shard: Shard) -> Iterator[None]:
    """Within it, this process has a part in a team; one that has a part already keeps it."""
    if _team.get() is not None:
        yield
        return
    token = _team.set(shard)
    try:
        yield
    finally:
        _team.reset(token)


@contextmanager
def local() -> Iterator[None]:
    """Within it this process works alone, whatever team it is in."""
    token = _team.set(WHOLE)
    try:
        yield
    finally:
        _team.reset(token)


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """What :meth:`Shard.of` divided, in its first order."""
    longest = max(map(len, parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def world_size() -> int:
    """Processes that were launched together, as the launcher declares.

    Raises:
        ConfigError: If it declares no number.
    """
    return _declared("WORLD_SIZE", 1)


def follows() -> bool:
    """Whether this process was launched beside a first one.

    Raises:
        ConfigError: If the launcher declares no number, or one that no process has.
    """
    return own_rank() > 0


def own_rank() -> int:
    """This process's number among those that were launched together, as the launcher declares.

    Raises:
        ConfigError: If it declares no number, or one that no process has.
    """
    size = world_size()
    rank = _declared("RANK", 0) if size > 1 else 0
    if rank >= size:
        raise ConfigError(f"RANK is {rank} in the environment, of {size} processes; {UNSET}")
    return rank


def own_gpu(n_gpus: int) -> int | None:
    """The GPU of this process among those of its machine; None for one process, which may choose.

    Args:
        n_gpus: GPUs of the machine.
    """
    return _declared("LOCAL_RANK", 0) % n_gpus if world_size() > 1 and n_gpus else None


def _declared(name: str, default: int) -> int:
    """A number that a launcher put into the environment."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or (name == "WORLD_SIZE" and int(value) < 1):
        raise ConfigError(f"{name} is {value!r} in the environment, no number; {UNSET}")
    return int(value)


UNSET = (
    "it is set by torchrun or accelerate launch for several processes: use one of them, or unset "
    "WORLD_SIZE to work with one process"
)
