"""Work of a team: done by the first for all, by each in part, or by all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from streamline.distributed.exchange import failing_together, gathered, sent
from streamline.distributed.meeting import joined
from streamline.distributed.team import local, team

__all__ = ["agreed", "broadcast", "in_turn", "led", "scatter", "shared", "together"]

Result = TypeVar("Result")


def together(work: Callable[[], Result]) -> Result:
    """Work as one of the processes that were launched together; alone, just work.

    Args:
        work: The same on every process.

    Raises:
        Exception: If a process failed: the failure of the first that did, on all alike.
        LostProcess: If one of them is gone.
    """
    with joined():
        return agreed(work)


def shared(work: Callable[[], Result]) -> Result:
    """Let the first process alone do something, and give what it gave to all.

    Args:
        work: Gives anything that can be pickled, and tensors.

    Raises:
        Exception: What it raised, on all alike.
    """
    return work() if team().size == 1 else sent("shared", work)


def broadcast(value: Result) -> Result:
    """The first process's value."""
    return shared(lambda: value)


def agreed(work: Callable[[], Result]) -> Result:
    """Let every process do the same; if one fails, all do.

    What is done together within it ends everywhere when one process fails anywhere in it.

    Raises:
        Exception: If a process failed: the failure of the first that did, on all alike.
    """
    if team().size == 1:
        return work()
    with failing_together("agreed") as done:
        result = work()
        done()
    return result


def in_turn(work: Callable[[], Result]) -> Result:
    """Let the first process do something, then the others: it fetches what they find then.

    Raises:
        Exception: If a process failed: the failure of the first that did, on all alike.
    """
    if team().size == 1:
        return work()

    def alone() -> Result:
        with local():
            return work()

    made: list[Result] = []
    for turn in (True, False):
        mine = turn == (team().rank == 0)
        agreed(lambda mine=mine: made.append(alone()) if mine else None)  # type: ignore[misc]
    return made[0]


@contextmanager
def led(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Let the first process alone be in a context; all fail where it cannot be entered."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        shared(enter)
        yield


def scatter(
    function: Callable[..., Result],
    *args: Any,
    progress: Callable[..., None] | None = None,
) -> list[Result]:
    """Let every process compute its shard.

    Args:
        function: Called on each as ``function(shard, *args, progress=...)``.
        *args: The same on all processes.
        progress: Handed to it.

    Returns:
        The results by rank; one, of the whole work, where this process is alone.

    Raises:
        Exception: If a process failed: the failure of the first that did, on all alike.
    """
    shard = team()
    if shard.size == 1:
        with local():
            return [function(shard, *args, progress=progress)]
    return gathered("scatter", lambda: function(shard, *args, progress=progress))
