"""Tensors that all processes exchange in place: sums of gradients, the first one's weights.

Between GPUs over NCCL, where every process has one of its own, else over gloo. Memory for it is
taken before the word on whether all are well, and nothing is allocated between that and the end of
the exchange. A kernel of NCCL waits for the others without end and without a word, so this process
waits for the kernel, and not for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Timer

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamline.distributed.exchange import exchanging, failing_together
from streamline.distributed.packed import raw_bytes
from streamline.distributed.team import LostProcess, team

__all__ = ["alike", "ended", "reduced"]

#: The group that sums tensors of GPUs, where every process has one of its own; else they pass
#: through memory.
gpus: dist.ProcessGroup | None = None

#: Of waiting for a part of a sum on a GPU: all have said before that they are there.
SECONDS = 30.0
_LEAVING = 20.0  # seconds until a process ends whose GPU does not let go of the exchange

_BUCKET = 64 * 2**20  # bytes of tensors that are sent as one


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
    every = list(parameters)
    with failing_together("the sum of gradients") as done:
        known = torch.tensor([*numbers, *(p.grad is not None for p in every)], dtype=torch.float64)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        buckets = _buckets(gradients)
        done()
    with exchanging():
        dist.all_reduce(known)
    _exchange(buckets, lambda flat, group: dist.all_reduce(flat, group=group))
    counts = known[len(numbers) :].tolist()
    for parameter, gradient, count in zip(every, gradients, counts, strict=True):
        parameter.grad = gradient if count else None
    return known[: len(numbers)].tolist()


def alike(tensors: Iterable[Tensor]) -> None:
    """Give tensors the first process's values, in place.

    Args:
        tensors: Of the same shapes, dtypes and kinds of device on all processes.
    """
    if team().size == 1:
        return
    every = [tensor.detach() for tensor in tensors]
    about = [(tuple(t.shape), str(t.dtype), t.device.type) for t in every]
    with failing_together(f"values of {about}") as done:
        buckets = _buckets(every)
        done()
    _exchange(buckets, lambda flat, group: dist.broadcast(raw_bytes(flat), src=0, group=group))


@dataclass(frozen=True)
class _Bucket:
    """Tensors of one device and dtype that are exchanged as one.

    Attributes:
        tensors: What they are.
        flat: What is exchanged, [sum of their elements]: room for them, or the one that it is.
        copied: Whether it is room for them.
    """

    tensors: list[Tensor]
    flat: Tensor
    copied: bool

    def parts(self) -> list[Tensor]:
        """What belongs to each tensor, in its shape."""
        parts = torch.split(self.flat, [tensor.numel() for tensor in self.tensors])
        return [part.view(t.shape) for part, t in zip(parts, self.tensors, strict=True)]


def _buckets(tensors: Sequence[Tensor]) -> list[_Bucket]:
    """Tensors as they are exchanged, in the same order everywhere, with the room for it.

    A large one goes by itself, where it is; small ones share a bucket, and all buckets of a kind
    the same memory.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for tensor in tensors:
        parts = kinds.setdefault((tensor.device, tensor.dtype), [])
        if not parts or _size([*parts[-1], tensor]) > _BUCKET:
            parts.append([])
        parts[-1].append(tensor)
    found = []
    for (device, dtype), parts in kinds.items():
        direct = device.type == "cpu" or (device.type == "cuda" and gpus is not None)
        copied = [not (direct and len(part) == 1 and part[0].is_contiguous()) for part in parts]
        lengths = [sum(tensor.numel() for tensor in part) for part in parts]
        most = max((n for n, own in zip(lengths, copied, strict=True) if own), default=0)
        room = torch.empty(most, dtype=dtype, device=device if direct else "cpu")
        found += [
            _Bucket(part, room[:n] if own else part[0].view(-1), own)
            for part, n, own in zip(parts, lengths, copied, strict=True)
        ]
    return found


def _size(tensors: Sequence[Tensor]) -> int:
    """Bytes of some tensors of one dtype."""
    return sum(tensor.numel() for tensor in tensors) * tensors[0].element_size()


@torch.no_grad()
def _exchange(
    buckets: Sequence[_Bucket], exchange: Callable[[Tensor, dist.ProcessGroup | None], object]
) -> None:
    """Exchange tensors, in place."""
    begun = []
    for bucket in buckets:
        if bucket.copied:
            torch._foreach_copy_(bucket.parts(), bucket.tensors)
        cuda = bucket.flat.device.type == "cuda"
        with exchanging():
            exchange(bucket.flat, gpus if cuda else None)
        if bucket.copied:
            torch._foreach_copy_(bucket.tensors, bucket.parts())
        if cuda:
            begun.append(torch.cuda.current_stream(bucket.flat.device).record_event())
    for event in begun:
        ended(event)


def ended(event: torch.cuda.Event) -> None:
    """Wait until a GPU has come to an event, which it never does if another one is gone.

    Raises:
        LostProcess: If it takes too long.
    """
    until = time.monotonic() + SECONDS
    with exchanging():
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > until:
                end = Timer(_LEAVING, os._exit, (2,))
                end.daemon = True
                end.start()
                raise LostProcess(
                    f"a sum over the GPUs of {team().size} processes has not ended for "
                    f"{SECONDS:.0f} seconds: another process is gone, or they do not reach each "
                    "other (NCCL_DEBUG=INFO says more). What is finished is kept; launch the same "
                    "command again"
                )
            time.sleep(0.0005)
