"""Batches that do not fit into memory are worked in halves, and no answer is lost.

What failed is split in two and done again; everything that follows is kept to the smaller size, so
that a device is not driven against its limit again and again. What cannot be split any further is
an error that names its length.

Example::

    room = Room(size=lambda batch: batch.cost, halves=halved, describe=str)
    for part, answers in room.work(batch, answer):
        store(part, answers)
    room.limit                  # None, or the most tokens that are tried from now on
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from streamline.errors import StreamlineError

__all__ = ["Room", "free_memory", "out_of_memory"]

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
Result = TypeVar("Result")

_SIGNS = (
    "out of memory",  # CUDA without its own class, MPS
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",
    "alloc_failed",  # cuBLAS and cuDNN workspaces
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


def free_memory() -> None:
    """Give cached blocks of the accelerator back, so that a smaller batch finds its place."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class Room(Generic[Part]):
    """The largest batch that memory has room for, as far as it is known.

    Args:
        size: Tokens of a batch.
        halves: A batch in smaller ones, in order; empty if it cannot be split.
        describe: What cannot be split, in words, with its length.

    Attributes:
        limit: Most tokens that are tried; None before the first failure.
    """

    def __init__(
        self,
        size: Callable[[Part], int],
        halves: Callable[[Part], Sequence[Part]],
        describe: Callable[[Part], str],
    ) -> None:
        self.limit: int | None = None
        self._size = size
        self._halves = halves
        self._describe = describe

    def work(self, batch: Part, answer: Callable[[Part], Result]) -> list[tuple[Part, Result]]:
        """Answer a batch, in pieces where it must be.

        Args:
            batch: What to answer.
            answer: Called with the batch or its pieces; what it raises besides running out of
                memory is raised on.

        Returns:
            The pieces with their answers; together they are the batch.

        Raises:
            StreamlineError: If memory runs out with a batch that cannot be split.
        """
        waiting, done = [batch], []
        while waiting:
            part = waiting.pop()
            n_tokens = self._size(part)
            if self.limit is not None and n_tokens > self.limit:
                pieces = self._halves(part)
                if pieces:
                    waiting += reversed(pieces)
                    continue
            try:
                done.append((part, answer(part)))
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0]
            # Outside the handler, so that the failed attempt's tensors are free.
            free_memory()
            pieces = self._halves(part)
            if not pieces:
                raise StreamlineError(
                    f"memory ran out with {self._describe(part)} alone ({reason}); use a device "
                    "with more memory, --dtype bfloat16, or spread the model with --device-map auto"
                )
            self.limit = max(1, n_tokens // 2)
            logger.warning(
                "out of memory with %d tokens in a batch; at most %d from now on",
                n_tokens,
                self.limit,
            )
            waiting += reversed(pieces)
        return done
