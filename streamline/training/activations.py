"""The teacher's hidden states, and a store for those that are needed again.

A teacher pass runs no deeper than the last depth that is wanted and keeps nothing of its own. An
:class:`ActivationStore` is one memory-mapped file per depth, rounded to one dtype whether it is
read back or freshly computed, so that results do not depend on what the store already holds. Beside
it lies a mark for each sequence: the checksum of its states, which are checked against it when a
process first reads them. So a state that was lost, or never reached the disk, is computed again.

Example::

    teacher_pass(decoder, ids, decoder.enter(ids), {8, 12}, at=lambda depth, hidden: ...)
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.forward import TokenJob, run
from streamline.engine.paths import prefix_paths

__all__ = ["ActivationCache", "ActivationStore", "teacher_pass"]

log = logging.getLogger(__name__)

At = Callable[[int, Tensor], None]

_PAGE = 512  # words of 8 bytes that are summed into one before the checksum is taken
_FILLED = 1 << 32  # added to a checksum, so that no mark is 0


def teacher_pass(
    decoder: Decoder, ids: Tensor, entry: Entry, depths: Collection[int], at: At
) -> None:
    """Run the dense path, without gradients, no deeper than needed.

    Args:
        decoder: The teacher.
        ids: Token ids, [B, T].
        entry: The batch, from :meth:`Decoder.enter`.
        depths: 0 is the input of layer 0, i the output of layer i - 1.
        at: Called with each depth, in rising order, and its hidden states, [B, T, D], as soon as
            they are there, so that none has to wait for the last.
    """
    for _ in run(prefix_paths(decoder, depths), [_Teacher(ids, entry, iter(sorted(depths)), at)]):
        pass


@dataclass(frozen=True)
class _Teacher(TokenJob):
    """A batch of the teacher; the shorter of two prefixes ends first."""

    entry: Entry
    depths: Iterator[int]
    at: At
    for_training: bool = True
    needs_head: ClassVar[bool] = False

    def enter(self, decoder: Decoder) -> Entry:
        return self.entry

    def answer(self, decoder: Decoder, kept: Tensor) -> None:
        self.at(next(self.depths), kept.detach())


class ActivationStore:
    """Hidden states of some depths for a fixed list of sequences.

    Args:
        depths: The depths it can hold.
        shape: Sequences, tokens and width, (N, T, D).
        dtype: What hidden states are rounded to.
        directory: Folder of the memory-mapped files; None keeps the tensors in memory.
    """

    def __init__(
        self,
        depths: Collection[int],
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        directory: Path | None = None,
    ) -> None:
        self.depths, self.shape, self.dtype, self.directory = (
            sorted(depths),
            shape,
            dtype,
            directory,
        )
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        size = shape[0] * shape[1] * shape[2]
        self._states = {d: self._array(f"depth-{d}.states", size, dtype) for d in self.depths}
        self._marks = {d: self._array(f"depth-{d}.filled", shape[0], torch.int64) for d in depths}
        self._checked = {d: torch.zeros(shape[0], dtype=torch.bool) for d in depths}

    def _array(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        if self.directory is None:
            return torch.zeros(size, dtype=dtype)
        path = self.directory / name
        n_bytes = size * dtype.itemsize
        # Blocks are reserved now: a disk that fills up later would kill the process.
        with path.open("ab") as file:
            if file.tell() != n_bytes:
                file.truncate(0)
                file.truncate(n_bytes)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype)

    def round(self, hidden: Tensor) -> Tensor:
        """Hidden states as they would be read back."""
        return hidden.to(self.dtype)

    def holds(self, indices: Tensor) -> bool:
        """Whether every depth of all these sequences is there; never for a store of no depths."""
        return bool(self.depths) and all(self._filled(d, indices) for d in self.depths)

    def _filled(self, depth: int, indices: Tensor) -> bool:
        """Whether the states of these sequences are those that were written."""
        marks, checked = self._marks[depth], self._checked[depth]
        damaged = [
            index
            for index in indices[(marks[indices] != 0) & ~checked[indices]].tolist()
            if int(marks[index]) != _mark(self._states[depth].view(self.shape)[index])
        ]
        if damaged:
            log.warning(
                "%s/depth-%d.states is damaged (%d sequences): the teacher computes them again",
                *(self.directory, depth, len(damaged)),
            )
            marks[damaged] = 0
        checked[indices] = True
        return bool((marks[indices] != 0).all())

    def write(self, depth: int, indices: Tensor, hidden: Tensor) -> None:
        """Keep the hidden states of some sequences, [B, T, D], if the store has that depth."""
        if depth not in self._states:
            return
        rounded = self.round(hidden).cpu()
        self._states[depth].view(self.shape)[indices] = rounded
        self._marks[depth][indices] = torch.tensor([_mark(state) for state in rounded])
        self._checked[depth][indices] = True

    def read(self, depth: int, indices: Tensor) -> Tensor:
        """The hidden states of some sequences, [B, T, D], on the CPU in the store's dtype."""
        return self._states[depth].view(self.shape)[indices]


@dataclass(frozen=True)
class ActivationCache:
    """A folder for teacher activations that are used in more than one epoch.

    Attributes:
        directory: Where the files go.
        byte_budget: Largest size of everything in the folder; what does not fit is computed again.
        dtype: What activations are rounded to, read back or not.
    """

    directory: Path
    byte_budget: int
    dtype: torch.dtype = torch.bfloat16

    def store(
        self, key: str, depths: Collection[int], shape: tuple[int, int, int]
    ) -> ActivationStore:
        """Open the files of one teacher and one list of sequences.

        Args:
            key: Content key of the teacher and the data.
            depths: Depths that are needed.
            shape: Sequences, tokens and width, (N, T, D).

        Returns:
            The store; one that only rounds and holds nothing if it does not fit the budget or
            the disk.
        """
        folder = self.directory / f"{key[:16]}-{str(self.dtype).removeprefix('torch.')}"
        need = len(depths) * shape[0] * (shape[1] * shape[2] * self.dtype.itemsize + 8)
        names = {f"depth-{d}.{part}" for d in depths for part in ("states", "filled")}
        used, mine = 0, 0
        for path in self.directory.rglob("depth-*.*") if self.directory.exists() else ():
            if path.parent == folder and path.name in names:
                mine += path.stat().st_size
            else:
                used += path.stat().st_size
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if used + need > self.byte_budget or need - mine > free:
            log.info(
                "activations of %d depths need %d bytes beside %d in %s (budget %d, disk free %d): "
                "the teacher is run again in each epoch",
                *(len(depths), need, used, self.directory, self.byte_budget, free),
            )
            return ActivationStore((), shape, self.dtype)
        return ActivationStore(depths, shape, self.dtype, folder)


def _mark(states: Tensor) -> int:
    """What stands for the states of one sequence, [T, D]: never 0, other for other bytes.

    A checksum of the sums of its pages, as fast as memory is read.
    """
    data = states.contiguous().view(-1).view(torch.uint8).numpy()
    whole = len(data) // (8 * _PAGE) * 8 * _PAGE
    sums = data[:whole].view(np.uint64).reshape(-1, _PAGE).sum(1)
    return _FILLED + zlib.crc32(data[whole:].tobytes(), zlib.crc32(sums.tobytes()))
