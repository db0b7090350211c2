"""A part of a run: some of its cells, and the folder of their records.

What belongs to a cell alone (samples, plan, losses, training) has its name and lies in the run's
folder, as does the cache; records of several processes do not meet in one file but lie in a folder
for each part, until they are put together (:mod:`streamline.run.shards.merging`).

Example::

    part = Part("1-of-2", frozenset(cells))
    part.folder(out)            # out/shards/1-of-2
    WHOLE.folder(out)           # out
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamline.errors import ConfigError
from streamline.files import sweep
from streamline.results.record import Record
from streamline.results.record_file import by_identity, find, recorded
from streamline.run.cell import Cell, CellJob
from streamline.sharing.claims import Claim
from streamline.sharing.once import sharing

__all__ = ["SHARDS", "WHOLE", "Part", "busy_parts", "claims_of", "part_folders", "working"]

SHARDS = "shards"
_CLAIM = re.compile(r"(\d+-of-\d+(?:-\d+)*)\.")  # the name of a claim on a part


@dataclass(frozen=True)
class Part:
    """Some cells of a run.

    Attributes:
        name: The name of its folder; empty for the whole run.
        cells: Which; None for all.
    """

    name: str = ""
    cells: frozenset[Cell] | None = None

    def folder(self, out: Path) -> Path:
        """Where the records of its cells lie.

        Args:
            out: The run's folder.
        """
        return out / SHARDS / self.name if self.name else out

    def has(self, cell: Cell) -> bool:
        """Whether a cell of the run is in it."""
        return self.cells is None or cell in self.cells

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of some cells that are in it."""
        return [cell for cell in cells if self.has(cell)]

    def records(self, out: Path) -> list[Record]:
        """What is recorded in a run's folder and, of its own cells, in this part."""
        found = by_identity(recorded(out))
        if self.name:
            found |= by_identity(recorded(self.folder(out)))
        return list(found.values())

    def found(self, out: Path, jobs: Sequence[CellJob]) -> list[Record | None]:
        """The records of some cells, read once; None where there is none."""
        records = self.records(out)
        return [find(records, *job.cell.identity) for job in jobs]


WHOLE = Part()


def claims_of(out: Path) -> Path:
    """Where those that work on parts of a run put their claims."""
    return out / SHARDS / "claims"


def part_folders(out: Path) -> list[Path]:
    """The folders of parts that are not put together yet, by name."""
    folder = out / SHARDS
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and p != claims_of(out))


def busy_parts(out: Path) -> list[str]:
    """The parts of a run that somebody is working on, or about to."""
    names = {folder.name for folder in part_folders(out)}
    names |= {m.group(1) for p in claims_of(out).glob("*.lock") if (m := _CLAIM.match(p.name))}
    return [name for name in sorted(names) if Claim(claims_of(out) / name).is_held()]


@contextmanager
def working(out: Path, part: Part) -> Iterator[None]:
    """Keep others out of a part, and make what other parts need too in turn with them.

    Args:
        out: The run's folder.
        part: The part; nothing happens for the whole run.

    Raises:
        ConfigError: If another process works on it.
    """
    if not part.name:
        yield
        return
    claim = Claim(claims_of(out) / part.name)
    if not claim.acquire_unless_held():
        raise ConfigError(
            f"another process is working on {part.folder(out)}: wait until it ends, stop it, or "
            "give each process a shard of its own"
        )
    try:
        sweep(part.folder(out))
        with sharing(claims_of(out)):
            yield
    finally:
        claim.release()
