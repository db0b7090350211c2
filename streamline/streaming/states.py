"""Hidden states of many batches between two layers: in memory up to a budget, the rest on disk.

When layers come one at a time, the states of all batches wait for the next one. What exceeds the
budget goes to a file that has no name: the system frees it when it is closed, even if the process
is killed.

Example::

    with StateStore(memory_bytes=1 << 30) as store:
        store.put((0, "after embedding"), hidden, uses=2)
        store.take((0, "after embedding")), store.take((0, "after embedding"))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from streamline.sources.weights import memory_of

__all__ = ["StateStore"]

_ONE_CALL = 1 << 30  # a single system call moves less than 2 GiB


@dataclass
class _Held:
    """A state that waits: in memory, or at an offset of the file."""

    tensor: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    size: int
    uses: int
    offset: int = 0


class StateStore:
    """Tensors by key, each read a known number of times.

    Args:
        memory_bytes: Most bytes kept in memory.
        folder: Where the file goes if one is needed; None for the system's temporary folder.

    Attributes:
        n_bytes: Bytes in memory now.
        peak_bytes: Most bytes in memory so far.
        file_bytes: Size of the file so far; 0 if none was needed.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.n_bytes = 0
        self.peak_bytes = 0
        self.file_bytes = 0
        self._held: dict[Hashable, _Held] = {}
        self._file: IO[bytes] | None = None
        self._free: dict[int, list[int]] = {}

    def __enter__(self) -> StateStore:
        """The store itself; everything in it is let go on leaving."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let everything go."""
        self.close()

    def __len__(self) -> int:
        """States that are waiting."""
        return len(self._held)

    def put(self, key: Hashable, tensor: Tensor, uses: int = 1) -> None:
        """Keep a tensor until it has been read ``uses`` times.

        Args:
            key: A name that is not in use.
            tensor: Any shape and dtype; must not be changed afterwards.
            uses: How often it will be read, at least 1.

        Raises:
            OSError: If the disk is full.
        """
        assert key not in self._held and uses >= 1, (key, uses)
        tensor = tensor.detach().to("cpu").contiguous()
        size = tensor.numel() * tensor.element_size()
        held = _Held(tensor, tensor.shape, tensor.dtype, size, uses)
        if self.n_bytes + size > self.memory_bytes:
            held.tensor, held.offset = None, self._write(tensor, size)
        else:
            self.n_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.n_bytes)
        self._held[key] = held

    def take(self, key: Hashable) -> Tensor:
        """A tensor back, on the CPU; after the last use its memory is free."""
        held = self._held[key]
        held.uses -= 1
        last = held.uses == 0
        if last:
            del self._held[key]
        if held.tensor is not None:
            self.n_bytes -= held.size * last
            return held.tensor
        tensor = self._read(held)
        if last:
            self._free.setdefault(held.size, []).append(held.offset)
        return tensor

    def close(self) -> None:
        """Let everything go, the file too."""
        self._held.clear()
        self._free.clear()
        self.n_bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, tensor: Tensor, size: int) -> int:
        """Write a tensor to a free place of the file, and return where."""
        if self._file is None:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - kept
        places = self._free.get(size)
        offset = places.pop() if places else self.file_bytes
        self.file_bytes = max(self.file_bytes, offset + size)
        view = memory_of(tensor)
        done = 0
        while done < size:
            part = view[done : done + _ONE_CALL]
            done += os.pwritev(self._file.fileno(), [part], offset + done)
        return offset

    def _read(self, held: _Held) -> Tensor:
        assert self._file is not None
        tensor = torch.empty(held.shape, dtype=held.dtype)
        view = memory_of(tensor)
        done = 0
        while done < held.size:
            part = view[done : done + _ONE_CALL]
            count = os.preadv(self._file.fileno(), [part], held.offset + done)
            if count == 0:
                raise OSError("the file of waiting hidden states is shorter than what was written")
            done += count
        return tensor
