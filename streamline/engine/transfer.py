"""Copies between the host and a device that do not stop the device.

Reading a number from an accelerator waits for all that it was given before, and it then waits for
the program in turn. So what a batch is to say is copied as a part of the device's own work, and
read when the next batch is there for it to work on. On a CPU nothing is copied and nothing waits.
What a layer is called with, tensors within tuples, lists and dicts, is moved and repeated as one.

Example::

    later = Later([loss], lambda tensors: float(tensors[0]))
    ...                                     # the device is given more to do
    later.value()
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ASYNCHRONOUS", "Later", "off", "onto", "read", "repeated", "single_sequences", "summed",
    "to_device",
]  # fmt: skip

#: Kinds of devices that copy beside their work.
ASYNCHRONOUS = {"cuda"}


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the host without waiting for the device's work, where it can.

    The host's memory may be changed afterwards: what is not pinned is copied before this returns.
    """
    late = tensor.device.type == "cpu" and device.type in ASYNCHRONOUS
    return tensor.to(device, non_blocking=late)


def off(tensor: Tensor) -> Tensor:
    """A tensor on the host, or on its way there: its values may come later."""
    return tensor.to("cpu", non_blocking=tensor.device.type in ASYNCHRONOUS)


class Later:
    """A value that is made on the host of tensors on a device, which are on their way.

    Args:
        tensors: Any tensors, on any devices.
        made: Makes the value of them, on the CPU.
    """

    def __init__(self, tensors: Sequence[Tensor], made: Callable[[list[Tensor]], Any]) -> None:
        self._there = [off(tensor) for tensor in tensors]
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        self._made = made

    @property
    def owed(self) -> bool:
        """Whether there may be something to wait for."""
        return bool(self._copied)

    def value(self) -> Any:
        """The value, when its tensors are there."""
        for event in self._copied:
            event.synchronize()
        return self._made(self._there)


def read(result: Any) -> Any:
    """What a result stands for: the value of a :class:`Later`, anything else itself."""
    return result.value() if isinstance(result, Later) else result


def summed(numbers: Sequence[Tensor]) -> float:
    """The sum of some scalars of one device, in order and in float64; 0 of none.

    The device is waited for once: a loss that is read as soon as it is there stops it each time.
    """
    return sum(torch.stack([*numbers]).tolist(), 0.0) if numbers else 0.0


@contextmanager
def single_sequences(known: bool = True) -> Iterator[None]:
    """Within it transformers takes each row of a batch for one sequence, if that is known.

    Else it looks for several in the positions of every batch, and a device must have done all that
    came before until it has its answer.
    """
    masks: Any = sys.modules.get("transformers.masking_utils")
    name = "find_packed_sequence_indices"
    if not known or not hasattr(masks, name):
        yield
        return
    before = getattr(masks, name)
    try:
        setattr(masks, name, lambda position_ids: None)
        yield
    finally:
        setattr(masks, name, before)


def repeated(value: Any, n: int, rows: int) -> Any:
    """Every tensor of one call for a batch of ``rows``, made for ``n`` such batches.

    Tensors whose first dimension is 1 serve any batch; one-dimensional ones have no batch.
    """
    if isinstance(value, Tensor):
        batched = value.dim() > 1 and len(value) > 1 and len(value) % rows == 0
        return value.repeat(n, *[1] * (value.dim() - 1)) if batched else value
    if isinstance(value, (tuple, list)):
        return type(value)(repeated(item, n, rows) for item in value)
    if isinstance(value, dict):
        return {key: repeated(item, n, rows) for key, item in value.items()}
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return onto(value, device)
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value
