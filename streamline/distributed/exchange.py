"""What goes from process to process, each time after a word on whether all are well."""

from __future__ import annotations

import io
import logging
import math
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamline.distributed.team import LostProcess, local, team, world_size
from streamline.errors import StreamlineError

__all__ = ["alike", "failing_together", "gathered", "reduced", "sent"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: The group that sums tensors of GPUs, where every process has one of its own; else they pass
#: through memory.
gpus: dist.ProcessGroup | None = None

_BUCKET = 64 * 2**20  # bytes of tensors that are sent as one


class Told(BaseException):
    """Some process has failed, and all know of it.

    Not an ``Exception``: it passes by what this process was doing, up to where the failure was.

    Args:
        failures: By rank, how deep it failed and why, as :func:`_portable` gives it; or None.
    """

    def __init__(self, failures: Sequence[tuple[int, bytes] | None]) -> None:
        super().__init__()
        # What surrounds the rest ends it too.
        self.depth, self.rank, self._failure = min(
            (found[0], rank, found[1]) for rank, found in enumerate(failures) if found is not None
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
            meet(place, (depth, error))
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
    with _exchanging():
        dist.all_reduce(status, dist.ReduceOp.MAX)
        failed, most, least = status.tolist()
        if failed:
            failures: list[tuple[int, bytes] | None] = [None] * team().size
            own = None if failure is None else (failure[0], _portable(failure[1]))
            dist.all_gather_object(failures, own)
            raise Told(failures)
    if most != -least:
        raise LostProcess(
            f"the {team().size} processes do not do the same any more (here: {place}); they must "
            "run the same program on the same input, with the same versions"
        )


@contextmanager
def _exchanging() -> Iterator[None]:
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
            packed = _Packed(work())
        done()
    heads: list[Any] = [None] * team().size
    with _exchanging():
        dist.all_gather_object(heads, packed.head)
    all_sent = [_memory(packed, head, rank) for rank, head in enumerate(heads)]
    own = team().rank  # what follows may fail on one process alone
    return [packed.value if n == own else _unpacked(heads[n], m) for n, m in enumerate(all_sent)]


def sent(place: str, work: Callable[[], Result]) -> Result:
    """What the first process alone works out, on all of them.

    Raises:
        Exception: What it raised, on all alike.
    """
    packed = None
    with failing_together(place) as done:
        if team().rank == 0:
            with local():
                packed = _Packed(work())
        done()
    head: list[Any] = [packed and packed.head]
    with _exchanging():
        dist.broadcast_object_list(head, src=0)
    memory = _memory(packed, head[0], 0)
    result: Result = _unpacked(head[0], memory) if packed is None else packed.value
    return result


def _memory(mine: _Packed | None, head: tuple[bytes, list[Any]], source: int) -> Tensor:
    """The bytes of a process's tensors."""
    own, size = mine if source == team().rank else None, sum(n_bytes for *_, n_bytes in head[1])
    memory = torch.empty(size, dtype=torch.uint8) if own is None else own.memory()
    with _exchanging():
        for piece in torch.split(memory, 2**30) if len(memory) else ():
            dist.broadcast(piece, src=source)
    return memory


def _unpacked(head: tuple[bytes, list[Any]], memory: Tensor) -> Any:
    """A value that another process has sent."""
    body, about = head
    tensors = []
    for (shape, dtype, device, *_), data in zip(
        about, torch.split(memory, [n_bytes for *_, n_bytes in about]), strict=True
    ):
        tensor = torch.empty(shape, dtype=dtype)
        _bytes(tensor).copy_(data)
        tensors.append(tensor.to("cuda" if device == "cuda" else "cpu"))
    return _Unpickler(body, tensors).load()


class _Packed:
    """A value as it is sent: its structure pickled, its tensors beside it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        body = io.BytesIO()
        pickler = _Pickler(body)
        pickler.dump(value)
        self._tensors = [tensor.detach() for tensor in pickler.tensors]
        about = [
            (tuple(t.shape), t.dtype, t.device.type, t.numel() * t.element_size())
            for t in self._tensors
        ]
        self.head = body.getvalue(), about

    def memory(self) -> Tensor:
        """The tensors' bytes, one after the other."""
        parts = [_bytes(tensor.cpu().contiguous()) for tensor in self._tensors]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


class _Pickler(pickle.Pickler):
    """Leaves tensors out."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """A tensor's place beside the structure."""
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts a structure together again with its tensors."""

    def __init__(self, body: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(body))
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        """The tensor at a place."""
        return self._tensors[pid]


def reduced(parameters: Iterable[nn.Parameter], numbers: Sequence[float]) -> list[float]:
    """Sum gradients over the processes, in place, and some numbers beside them.

    Args:
        parameters: The same on all processes; of one without a gradient on all, there is none then.
        numbers: As many on all processes.

    Returns:
        The numbers' sums, in float64; of one process the numbers.
    """
    if team().size == 1:
        return list(numbers)
    meet("the sum of gradients")
    every = list(parameters)
    known = torch.tensor([*numbers, *(p.grad is not None for p in every)], dtype=torch.float64)
    with _exchanging():
        dist.all_reduce(known)
    gradients = []
    for parameter, count in zip(every, known[len(numbers) :].tolist(), strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    _in_buckets(gradients, lambda flat, group: dist.all_reduce(flat, group=group))
    return known[: len(numbers)].tolist()


def alike(tensors: Iterable[Tensor]) -> None:
    """Give tensors the first process's values, in place.

    Args:
        tensors: Of the same shapes and dtypes on all processes.
    """
    if team().size == 1:
        return
    every = [tensor.detach() for tensor in tensors]
    meet(f"values of {[(tuple(t.shape), str(t.dtype)) for t in every]}")
    _in_buckets(every, lambda flat, group: dist.broadcast(_bytes(flat), src=0, group=group))


@torch.no_grad()
def _in_buckets(
    tensors: Sequence[Tensor], exchange: Callable[[Tensor, dist.ProcessGroup | None], Any]
) -> None:
    """Exchange tensors, in place, several small ones at a time."""
    kinds: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for tensor in tensors:
        buckets = kinds.setdefault((tensor.device, tensor.dtype), [[]])
        if sum(t.numel() for t in buckets[-1]) * tensor.element_size() > _BUCKET:
            buckets.append([])
        buckets[-1].append(tensor)
    for (device, _), buckets in kinds.items():
        direct = device.type == "cpu" or (device.type == "cuda" and gpus is not None)
        for bucket in buckets:
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            flat = flat if direct else flat.cpu()
            with _exchanging():
                exchange(flat, gpus if device.type == "cuda" else None)
            parts = torch.split(flat, [math.prod(tensor.shape) for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.reshape(tensor.shape))


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8)
