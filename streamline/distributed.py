"""Several processes as one team: each works a share, and every one gets the whole result.

Under ``torchrun`` or ``accelerate launch``, scoring, perplexity, generation, calibration and the
losses of paths are data-parallel: each process works some of the batches, and the parts are
gathered. There are two ways to use it. In a script of one's own all processes make the same
calls::

    with joined():
        answers = score(paths, requests)            # the same on every process

In a run of this package the first process leads: it alone reads and writes files, prunes, trains
and heals, and hands the others their shares (:mod:`streamline.engine.following`); they wait
meanwhile. The transport is gloo, whatever the devices, so a GPU's tensors pass through memory.

A function given to :func:`spread` is told its :class:`Share`. Parts are put together in the order
of one process; where shares are dealt smaller batches than one process would take, the numbers
differ from its by rounding.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from streamline.errors import StreamlineError

__all__ = [
    "ALONE",
    "WHOLE",
    "Share",
    "Team",
    "agreed",
    "follows",
    "interleaved",
    "joined",
    "spread",
    "team",
    "world_size",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = timedelta(days=30)  # the others wait while the first trains


@dataclass(frozen=True)
class Share:
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


WHOLE = Share()


class Caller(Protocol):
    """Tells the other processes what to call; see :mod:`streamline.engine.following`."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Let the others make a call too; False if it cannot be handed over."""


@dataclass(frozen=True)
class Team:
    """The processes that work together.

    Attributes:
        share: This process's part.
        leader: How the first process calls the others; None where all make the same calls.
    """

    share: Share = WHOLE
    leader: Caller | None = None


ALONE = Team()
_team: ContextVar[Team] = ContextVar("team", default=ALONE)


def team() -> Team:
    """The team that this code runs in; :data:`ALONE` outside :func:`joined`."""
    return _team.get()


def world_size() -> int:
    """Processes that were launched together, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def follows() -> bool:
    """Whether this process was launched beside a first one."""
    return world_size() > 1 and int(os.environ.get("RANK", "0")) > 0


@contextmanager
def joined(leader: Callable[[Share], Caller] | None = None) -> Iterator[Team]:
    """Join the processes that were launched together; alone, nothing changes.

    Args:
        leader: Makes the first process's :class:`Caller`; by default all make the same calls.
    """
    if world_size() == 1:
        yield ALONE
        return
    import torch.distributed
    from accelerate import PartialState

    fresh = not torch.distributed.is_initialized()
    state = PartialState(cpu=True, timeout=_PATIENCE)
    if fresh:
        atexit.register(torch.distributed.destroy_process_group)
    share = Share(state.process_index, state.num_processes)
    found = Team(share, leader(share) if leader is not None and share.rank == 0 else None)
    token = _team.set(found)
    try:
        yield found
    finally:
        _team.reset(token)


@contextmanager
def local() -> Iterator[None]:
    """Within it this process works alone, whatever team it is in."""
    token = _team.set(ALONE)
    try:
        yield
    finally:
        _team.reset(token)


def spread(
    function: Callable[..., Result],
    *args: Any,
    progress: Callable[..., None] | None = None,
) -> list[Result]:
    """Let every process work its share.

    Args:
        function: Called on each as ``function(share, *args, progress=...)``; importable by name,
            since the first process may have to tell the others what to call.
        *args: The same on all processes.
        progress: Handed to the first process's call alone.

    Returns:
        The results by rank; one, of the whole work, where this process is alone.

    Raises:
        StreamlineError: If another process failed; what fails here is raised as it is.
    """
    together = team()
    share = together.share
    if share.size > 1 and together.leader is not None and not together.leader.call(function, args):
        share = WHOLE
    if share.size == 1:
        with local():
            return [function(share, *args, progress=progress)]
    return gathered(share, lambda: function(share, *args, progress=progress))


def gathered(share: Share, work: Callable[[], Result]) -> list[Result]:
    """Work on every process and exchange the results, faults included.

    Args:
        share: This process's.
        work: Its part.

    Returns:
        The results by rank.

    Raises:
        StreamlineError: If another process failed; what fails here is raised as it is.
    """
    import torch.distributed

    result: Result | None = None
    fault: Exception | None = None
    try:
        with local():
            result = work()
    except Exception as error:  # kept until all have been told, so that none waits for ever
        fault = error
    found: list[Any] = [None] * share.size
    told = None if fault is None else f"{type(fault).__name__}: {fault}"
    torch.distributed.all_gather_object(found, (told, result))
    if fault is not None:
        raise fault
    for rank, (other, _) in enumerate(found):
        if other is not None:
            raise StreamlineError(f"process {rank} of {share.size} failed: {other}")
    return [part for _, part in found]


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """What :meth:`Share.of` divided, in its first order."""
    longest = max(map(len, parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def agreed(value: Item) -> Item:
    """The first process's value, where all make the same calls; else the value itself."""
    together = team()
    if together.share.size == 1 or together.leader is not None:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
