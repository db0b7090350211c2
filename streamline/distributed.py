"""Several processes as one team: each has a shard of the batches, all get the whole result.

Under ``torchrun`` or ``accelerate launch``, scoring, perplexity, generation, calibration and the
losses of paths are data-parallel: each process runs some of the batches, and the parts are
gathered. There are two ways to use it. In a script of one's own all processes make the same
calls::

    with joined():
        answers = score(paths, requests)            # the same on every process

In a run of this package the first process leads: it alone reads and writes files, prunes and
trains, and gives the others their shards (:mod:`streamline.engine.following`); they wait
meanwhile. The transport is gloo, whatever the devices, so a GPU's tensors pass through memory.
PyTorch's store listens on all addresses and calls travel as pickle: the network must be trusted.

A function given to :func:`scatter` is given its :class:`Shard`. Parts are put together in the order
of one process; no batch is cut for their number, so the results are those of one process; generated
prompts are batched by each process, which may round otherwise.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer
from typing import Any, Protocol, TypeVar

from streamline.errors import ConfigError, StreamlineError

__all__ = [
    "ALONE",
    "WHOLE",
    "LostProcess",
    "Shard",
    "Team",
    "broadcast",
    "exchanging",
    "follows",
    "interleaved",
    "joined",
    "scatter",
    "team",
    "world_size",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = timedelta(days=30)  # the others wait while the first trains
_GATHERING = timedelta(minutes=10)  # until all processes are there
_HINT_S = 10.0  # of waiting for them in silence

log = logging.getLogger(__name__)


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


WHOLE = Shard()


class Caller(Protocol):
    """Lets the other processes make calls; see :mod:`streamline.engine.following`."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Let the others make a call too; False if it cannot be handed over."""


@dataclass(frozen=True)
class Team:
    """The processes that work together.

    Attributes:
        shard: This process's part.
        leader: How the first process calls the others; None where all make the same calls.
    """

    shard: Shard = WHOLE
    leader: Caller | None = None


ALONE = Team()
_team: ContextVar[Team] = ContextVar("team", default=ALONE)


def team() -> Team:
    """The team that this code runs in; :data:`ALONE` outside :func:`joined`."""
    return _team.get()


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
    size = world_size()
    rank = _declared("RANK", 0) if size > 1 else 0
    if rank >= size:
        raise ConfigError(f"RANK is {rank} in the environment, of {size} processes; {_UNSET}")
    return rank > 0


def _declared(name: str, default: int) -> int:
    """A number that a launcher put into the environment."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or (name == "WORLD_SIZE" and int(value) < 1):
        raise ConfigError(f"{name} is {value!r} in the environment, no number; {_UNSET}")
    return int(value)


_UNSET = (
    "it is set by torchrun or accelerate launch for several processes: use one of them, or unset "
    "WORLD_SIZE to work with one process"
)


@contextmanager
def joined(leader: Callable[[Shard], Caller] | None = None) -> Iterator[Team]:
    """Join the processes that were launched together; alone, nothing changes.

    Args:
        leader: Makes the first process's :class:`Caller`; by default all make the same calls.

    Raises:
        ConfigError: If the environment names no place to meet, or not all processes come there.
        LostProcess: Within it, if another process is gone.
    """
    if world_size() == 1:
        yield ALONE
        return
    import torch.distributed
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        _meet()
        atexit.register(torch.distributed.destroy_process_group)
    state = PartialState(cpu=True)
    shard = Shard(state.process_index, state.num_processes)
    found = Team(shard, leader(shard) if leader is not None and shard.rank == 0 else None)
    token = _team.set(found)
    try:
        yield found
    finally:
        _team.reset(token)


def _meet() -> None:
    """Wait for all processes, not for ever and not in silence, and join them."""
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    size, place = world_size(), [os.environ.get(f"MASTER_{part}") for part in ("ADDR", "PORT")]
    expected = f"WORLD_SIZE is {size} in the environment, so {size} processes are expected"
    if None in place:
        raise ConfigError(f"{expected}, but MASTER_ADDR and MASTER_PORT name no place; {_UNSET}")
    expected += f" at {':'.join(map(str, place))}"
    hint = Timer(_HINT_S, log.warning, (f"{expected}: waiting for them",))
    hint.daemon = True
    hint.start()
    try:
        store, rank, size = next(rendezvous("env://", timeout=_GATHERING))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{expected}, and they did not meet ({reason}); {_UNSET}") from error
    finally:
        hint.cancel()
    store.set_timeout(_PATIENCE)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )


@contextmanager
def exchanging() -> Iterator[None]:
    """Within it, values go from process to process.

    Raises:
        LostProcess: If that fails.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's: what it says is about its sockets
        log.debug("the exchange with the other processes failed", exc_info=True)
        raise LostProcess(
            f"another of {world_size()} processes is gone: it was killed, or its own messages say "
            "why it ended. What is finished is kept; launch the same command again"
        ) from error


@contextmanager
def local() -> Iterator[None]:
    """Within it this process works alone, whatever team it is in."""
    token = _team.set(ALONE)
    try:
        yield
    finally:
        _team.reset(token)


def scatter(
    function: Callable[..., Result],
    *args: Any,
    progress: Callable[..., None] | None = None,
) -> list[Result]:
    """Let every process compute its shard.

    Args:
        function: Called on each as ``function(shard, *args, progress=...)``; importable by name,
            since the first process may have to send the call to the others.
        *args: The same on all processes.
        progress: Handed to the first process's call alone.

    Returns:
        The results by rank; one, of the whole work, where this process is alone.

    Raises:
        StreamlineError: If another process failed; what fails here is raised as it is.
    """
    together = team()
    shard = together.shard
    if shard.size > 1 and together.leader is not None and not together.leader.call(function, args):
        shard = WHOLE
    if shard.size == 1:
        with local():
            return [function(shard, *args, progress=progress)]
    return gathered(shard, lambda: function(shard, *args, progress=progress))


def gathered(shard: Shard, work: Callable[[], Result]) -> list[Result]:
    """Work on every process and exchange the results, errors included.

    Args:
        shard: This process's.
        work: Its part.

    Returns:
        The results by rank.

    Raises:
        StreamlineError: If another process failed; what fails here is raised as it is.
    """
    import torch.distributed

    result: Result | None = None
    failure: Exception | None = None
    try:
        with local():
            result = work()
    except Exception as error:  # kept until all know of it, so that none waits for ever
        failure = error
    found: list[Any] = [None] * shard.size
    reason = None if failure is None else f"{type(failure).__name__}: {failure}"
    with exchanging():
        torch.distributed.all_gather_object(found, (reason, result))
    if failure is not None:
        raise failure
    for rank, (other, _) in enumerate(found):
        if other is not None:
            raise StreamlineError(f"process {rank} of {shard.size} failed: {other}")
    return [part for _, part in found]


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """What :meth:`Shard.of` divided, in its first order."""
    longest = max(map(len, parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def broadcast(value: Item) -> Item:
    """The first process's value, where all make the same calls; else the value itself."""
    together = team()
    if together.shard.size == 1 or together.leader is not None:
        return value
    import torch.distributed

    values = [value]
    with exchanging():
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
