"""What a set of questions or a text has brought so far, for each path, on disk.

A killed run resumes from it: batches whose results are there are not run again, and the others are
those of an undisturbed run, so no number changes.

Example::

    kept = Unfinished([store.unfinished(key, "piqa") for key in paths], of=part.data_hash)
    kept.write([[0, 1], [0, 1]], [values_of_a, values_of_b])
    kept.read()                     # the same, or None if a path has none of these questions
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.kept import kept_tensors, write_tensors

__all__ = ["Results", "Unfinished"]

SAVE_EVERY_S = 20.0  # seconds of work that a killed run may lose

Results = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Numbers of some items in the order in which they came: which, [n], and their values, [n, k]."""


@dataclass
class Unfinished:
    """Files of the results so far of several paths that are evaluated jointly.

    Attributes:
        files: One for each path.
        of: Content key of the questions or text; results of others are ignored.
    """

    files: Sequence[Path]
    of: str
    _written: float = field(default_factory=time.monotonic)

    def read(self) -> list[Results] | None:
        """Each path's results, or None if there are none of one of them."""
        return shared(self._read)

    def _read(self) -> list[Results] | None:
        found = []
        for file in self.files:
            kept = kept_tensors(file)
            if kept is None or kept[1]["of"] != self.of:
                return None
            found.append((kept[0]["items"].numpy(), kept[0]["values"].numpy()))
        return found

    @property
    def due(self) -> bool:
        """Whether the last writing, or the beginning, is a while ago."""
        return time.monotonic() - self._written >= SAVE_EVERY_S

    def write(self, results: Sequence[Results]) -> None:
        """Keep each path's results so far."""
        if not leads():
            return
        for file, (items, values) in zip(self.files, results, strict=True):
            tensors = {"items": torch.from_numpy(items), "values": torch.from_numpy(values)}
            write_tensors(file, tensors, {"of": self.of})
        self._written = time.monotonic()
