"""Batches that do not fit into memory are split, and no result is lost.

What failed is split in two and done again; everything that follows is kept to the smaller size, so
that a device is not driven against its limit again and again. What cannot be split any further is
an error that names its length.

Example::

    limit = BatchLimit()
    for part, found in limit.apply(job, attempt):
        store(part, found)
    limit.tokens                # None, or the most tokens that are tried from now on
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from streamline.errors import StreamlineError

__all__ = ["BatchLimit", "free_memory", "keep_to", "out_of_memory", "room"]

logger = logging.getLogger(__name__)

_SIGNS = (
    "out of memory",  # CUDA without its own class, MPS
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",
    "alloc_failed",  # cuBLAS and cuDNN workspaces
)


class Splittable(Protocol):
    """A batch that can be divided."""

    @property
    def n_tokens(self) -> int:
        """Tokens computed, padding included."""

    def split(self) -> Sequence[Splittable]:
        """The batch in smaller ones, in order; empty if it cannot be divided."""

    def describe(self) -> str:
        """What cannot be divided, in words, with its length."""


Part = TypeVar("Part", bound=Splittable)
Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


def free_memory() -> None:
    """Give cached blocks of the accelerator back, so that a smaller batch finds its place."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


_KEPT: dict[torch.device, int] = {}  # bytes that this process keeps to, by device


def keep_to(size: int | None, device: torch.device) -> None:
    """Let this process take no more of an accelerator than some bytes; more is "out of memory".

    Args:
        size: Bytes; None for all that there is. More than there is changes nothing.
        device: The device; for one that is no CUDA device nothing is set.
    """
    if device.type != "cuda" or (size is None and device not in _KEPT):
        return
    total = int(torch.cuda.get_device_properties(device).total_memory)
    kept = total if size is None else min(size, total)
    torch.cuda.set_per_process_memory_fraction(kept / total, device)
    _KEPT[device] = kept


def room(device: torch.device) -> int:
    """Bytes of a CUDA device that this process may still take."""
    free = int(torch.cuda.mem_get_info(device)[0])
    kept = _KEPT.get(device)
    if kept is None:
        return free
    return max(0, min(free, kept - int(torch.cuda.memory_allocated(device))))


@dataclass
class BatchLimit:
    """The largest batch that fits into memory, as far as it is known.

    Attributes:
        tokens: Most tokens that are tried; None before memory first ran out.
    """

    tokens: int | None = None

    def apply(self, batch: Part, attempt: Callable[[Part], Result]) -> list[tuple[Part, Result]]:
        """Work on a batch, in parts where it must be.

        Args:
            batch: What to work on.
            attempt: Called with the batch or its parts; what it raises besides running out of
                memory is raised on.

        Returns:
            The parts with their results; together they are the batch.

        Raises:
            StreamlineError: If memory runs out with a batch that cannot be split.
        """
        waiting, done = [batch], []
        while waiting:
            part = waiting.pop()
            n_tokens = part.n_tokens
            if self.tokens is not None and n_tokens > self.tokens:
                pieces: Sequence[Part] = part.split()  # type: ignore[assignment]
                if pieces:
                    waiting += reversed(pieces)
                    continue
            try:
                done.append((part, attempt(part)))
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0]
            # Outside the handler, so that the failed attempt's tensors are free.
            free_memory()
            pieces = part.split()  # type: ignore[assignment]
            if not pieces:
                raise StreamlineError(
                    f"memory ran out with {part.describe()} alone ({reason}); use a device "
                    "with more memory, --dtype bfloat16, or spread the model with --device-map auto"
                )
            self.tokens = max(1, n_tokens // 2)
            logger.warning(
                "out of memory with %d tokens in a batch; at most %d from now on",
                n_tokens,
                self.tokens,
            )
            waiting += reversed(pieces)
        return done

    def lower(self, tokens: int | None) -> None:
        """Take over what another process found; None changes nothing."""
        if tokens is not None:
            self.tokens = tokens if self.tokens is None else min(self.tokens, tokens)
