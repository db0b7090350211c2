"""The most memory that some work held at once, beyond what was there before.

Example::

    with peak_of(torch.device("cpu")) as peak:
        model(ids)
    peak.bytes, peak.way            # 1835008, "tensors"
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Peak", "peak_of"]


class Peak:
    """What is found.

    Attributes:
        bytes: The most that was held at once beyond what was there before.
        way: ``allocator``: all that the device's allocator gave out. ``tensors``: live tensors,
            without what kernels take for themselves.
    """

    def __init__(self, way: Literal["allocator", "tensors"]) -> None:
        self.bytes = 0
        self.way = way


@contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of what is done within it.

    Args:
        device: Where it is done. On CUDA its allocator is asked; elsewhere the tensors that
            operations make are counted while they live, which makes them slower.
    """
    if device.type == "cuda":
        peak = Peak("allocator")
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = max(0, int(torch.cuda.max_memory_allocated(device)) - before)
        return
    peak = Peak("tensors")
    with _LiveTensors(peak):
        yield peak


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, as long as they live."""

    def __init__(self, peak: Peak) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peak = peak
        self._live = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._see(value, made=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value, made=True)
        return out

    def _see(self, tensor: Tensor, *, made: bool) -> None:
        """Know a tensor's storage; count it if an operation made it."""
        # Of weights that oneDNN has laid out nothing but their size is known.
        opaque = tensor.layout is torch._mkldnn  # type: ignore[attr-defined]
        storage: Any = tensor if opaque else tensor.untyped_storage()
        key = id(storage)  # the object lives as long as the memory does
        if key in self._known:
            return
        size = tensor.numel() * tensor.element_size() if opaque else storage.nbytes()
        size = size if made else 0
        self._known[key] = weakref.finalize(storage, self._gone, key, size)
        self._live += size
        self._peak.bytes = max(self._peak.bytes, self._live)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self._live -= size
