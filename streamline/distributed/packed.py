"""Values as they are sent: their structure pickled, their tensors' bytes beside it.

Example::

    packed = Packed(value)
    unpacked(packed.head, packed.memory())      # the same on another process
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

__all__ = ["Head", "Packed", "n_bytes", "raw_bytes", "unpacked"]

#: The pickled structure; of each tensor the shape, dtype, kind of device and number of bytes.
Head = tuple[bytes, list[Any]]


class Packed:
    """A value as it is sent.

    Args:
        value: Anything that can be pickled, and tensors.
    """

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
        self.head: Head = body.getvalue(), about

    def memory(self) -> Tensor:
        """The tensors' bytes, one after the other, on the CPU."""
        parts = [raw_bytes(tensor.cpu().contiguous()) for tensor in self._tensors]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def n_bytes(head: Head) -> int:
    """Bytes of a value's tensors."""
    return sum(int(size) for *_, size in head[1])


def unpacked(head: Head, memory: Tensor) -> Any:
    """A value that another process has sent.

    Args:
        head: Its structure.
        memory: Its tensors' bytes, one after the other.
    """
    body, about = head
    tensors = []
    for (shape, dtype, device, *_), data in zip(
        about, torch.split(memory, [size for *_, size in about]), strict=True
    ):
        tensor = torch.empty(shape, dtype=dtype)
        raw_bytes(tensor).copy_(data)
        tensors.append(tensor.to("cuda" if device == "cuda" else "cpu"))
    return _Unpickler(body, tensors).load()


def raw_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8)


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
