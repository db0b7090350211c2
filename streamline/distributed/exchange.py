"""What goes from process to process, each time after a word on whether all are well.

Memory that an exchange needs is taken before that word: where one process has too little all hear
of it, and none waits for the others within the exchange.
"""

from __future__ import annotations

import logging
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from streamline.distributed.packed import Head, Packed, n_bytes, unpacked
from streamline.distributed.team import LostProcess, local, team, world_size
from streamline.errors import StreamlineError

__all__ = [
    "NotCome", "Told", "coming", "exchanging", "failing_together", "gathered", "meet", "sent",
]  # fmt: skip

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class NotCome(StreamlineError):
    """Other processes have not come to an exchange: they failed, and say why themselves."""


class Told(BaseException):
    """Some process has failed, and all know of it.

    Not an ``Exception``: it passes by what this process was doing, up to where the failure was.

    Args:
        failures: By rank, how deep it failed, whether it only waited for another one that did, and
            why, as :func:`_portable` gives it; or None.
    """

    def __init__(self, failures: Sequence[tuple[int, bool, bytes] | None]) -> None:
        super().__init__()
        # What surrounds the rest ends it too.
        self.depth, _, self.rank, self._failure = min(
            (*found[:2], rank, found[2]) for rank, found in enumerate(failures) if found is not None
        )

    def error(self, own: Exception | None) -> Exception:
        """The failure, as this process raises it.

        Args:
            own: This process's failure, if it had one.
        """
        if own is not None and self.rank == team().rank:
            return own
        found, text = pickle.loads(self._failure)
        # Errors of our own mean something to whoever catches them.
        if isinstance(found, StreamlineError):
            return found
        return StreamlineError(f"process {self.rank} of {team().size} failed: {text}")


_depth: ContextVar[int] = ContextVar("depth", default=0)


@contextmanager
def failing_together(place: str) -> Iterator[Callable[[], None]]:
    """Within it one process's failure is everyone's, wherever the others are in it.

    Args:
        place: What is done, in a word.

    Yields:
        To be called once this process has done its part.

    Raises:
        Exception: The failure of the first process that failed, on all alike.
    """
    depth = _depth.get() + 1
    token = _depth.set(depth)
    failure: Exception | None = None
    asked = False

    def done() -> None:
        nonlocal asked
        asked = True
        meet(place)

    try:
        try:
            yield done
        except Exception as error:  # kept until all know of it, so that none waits for ever
            if asked:
                raise
            failure = error
            try:
                meet(place, (depth, error))
            except LostProcess as lost:
                if isinstance(error, NotCome):
                    raise
                said = f"This process had failed before: {type(error).__name__}: {error}"
                raise LostProcess(f"{lost}. {said}") from error
    except Told as told:
        if told.depth < depth:
            raise
        found = told.error(failure)
        raise found from (found.__cause__ if found is failure else failure)
    finally:
        _depth.reset(token)


def meet(place: str, failure: tuple[int, Exception] | None = None) -> None:
    """Say how this process is, and hear how the others are.

    Args:
        place: What all are about to do together.
        failure: How deep within what is done together this process failed, and why.

    Raises:
        Told: If one has failed.
        LostProcess: If one is gone, or about to do something else.
    """
    mark = zlib.crc32(place.encode())
    status = torch.tensor([int(failure is not None), mark, -mark])
    with exchanging():
        dist.all_reduce(status, dist.ReduceOp.MAX)
        failed, most, least = status.tolist()
        if failed:
            failures: list[tuple[int, bool, bytes] | None] = [None] * team().size
            own = None
            if failure is not None:
                own = failure[0], isinstance(failure[1], NotCome), _portable(failure[1])
            dist.all_gather_object(failures, own)
            raise Told(failures)
    if most != -least:
        raise LostProcess(
            f"the {team().size} processes do not do the same any more (here: {place}); they must "
            "run the same program on the same input, with the same versions"
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
def coming() -> Iterator[None]:
    """Within it a library's code exchanges values on its own.

    Raises:
        NotCome: If the others do not come to that.
    """
    try:
        yield
    except RuntimeError as error:  # of its own kind over NCCL; over gloo its text says so
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise NotCome(f"other processes did not come to an exchange ({error})") from error
        raise


def _portable(error: Exception) -> bytes:
    """A failure as other processes can take it: the error, if it survives that, and its text."""
    text = f"{type(error).__name__}: {error}"
    try:
        found = pickle.dumps((error, text))
        pickle.loads(found)
    except Exception:  # errors of libraries often do not survive
        found = pickle.dumps((None, text))
    return found


def gathered(place: str, work: Callable[[], Result]) -> list[Result]:
    """Work on every process, each alone, and exchange the results.

    Args:
        place: What is done, in a word.
        work: This process's part.

    Returns:
        The results by rank.

    Raises:
        Exception: The failure of the first process that failed, on all alike.
    """
    with failing_together(place) as done:
        with local():
            packed = Packed(work())
            own = packed.memory()
        done()
    heads: list[Any] = [None] * team().size
    with exchanging():
        dist.all_gather_object(heads, packed.head)
    memories = _moved(place, heads, own, team().rank)
    return [  # what is put together may fail on one process alone
        packed.value if rank == team().rank else unpacked(head, memory)
        for rank, (head, memory) in enumerate(zip(heads, memories, strict=True))
    ]


def sent(place: str, work: Callable[[], Result]) -> Result:
    """What the first process alone works out, on all of them.

    Raises:
        Exception: What it raised, on all alike.
    """
    packed, own = None, None
    with failing_together(place) as done:
        if team().rank == 0:
            with local():
                packed = Packed(work())
                own = packed.memory()
        done()
    heads: list[Any] = [packed and packed.head]
    with exchanging():
        dist.broadcast_object_list(heads, src=0)
    (memory,) = _moved(place, heads, own, 0)
    result: Result = unpacked(heads[0], memory) if packed is None else packed.value
    return result


def _moved(place: str, heads: Sequence[Head], own: Tensor | None, mine: int) -> list[Tensor]:
    """The bytes of the tensors of the values of the first processes.

    Args:
        place: What is done, in a word.
        heads: The values' structures, by rank.
        own: The bytes of this process's tensors, if it sends any.
        mine: The place of these among them.
    """
    sizes = [n_bytes(head) for head in heads]
    if not any(sizes):
        return [torch.empty(0, dtype=torch.uint8) for _ in sizes]
    with failing_together(f"{place}: room") as done:  # which one of them alone may not have
        memories = [
            torch.empty(size, dtype=torch.uint8) if own is None or rank != mine else own
            for rank, size in enumerate(sizes)
        ]
        done()
    for source, memory in enumerate(memories):
        with exchanging():
            for piece in torch.split(memory, 2**30) if len(memory) else ():
                dist.broadcast(piece, src=source)
    return memories
