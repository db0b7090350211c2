"""What those who work on the parts of a run tell whoever has started them: how fast, and how far.

Each process leaves in its part's folder the rates of its device, once it has measured them, and
every few seconds the share of its work that is done. The process that waits for them, which may
have no such device, plans the hours of all cells with the first rates that it finds.

Example::

    tell_rates(part.folder(out), rates)             # on a worker
    executor.run(config, Telling(part.folder(out)), part)
    told_rates(out), told_share(part.folder(out))   # where it was started: None until then
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamline.kept import kept_json, write_json
from streamline.progress import Silent, placed
from streamline.run.planning.rates import Rates
from streamline.run.shards.part import part_folders

__all__ = ["Telling", "tell_rates", "told_rates", "told_share"]

log = logging.getLogger(__name__)

_RATES, _SHARE = "rates.json", "progress.json"
_EVERY_S = 5.0


class Telling(Silent):
    """Progress that tells how far a part is, and shows nothing.

    Args:
        folder: That of the part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = 0.0, 0.0
        self._reached = 0.0
        self._told = 0.0

    def stage(self, name: str, total: float | None = None) -> None:
        """A stage begins; what comes before its place in the whole is done."""
        self._place = placed() or self._place
        self._tell(self._place[0])

    def step(self, done: float, total: float, message: str = "") -> None:
        """A stage has come so far in its place."""
        start, stop = self._place
        self._tell(start + (stop - start) * (done / total if total else 0.0))

    def _tell(self, share: float) -> None:
        self._reached = max(self._reached, min(1.0, share))
        now = time.monotonic()
        if now - self._told >= _EVERY_S:
            self._told = now
            _write(self._folder / _SHARE, self._reached)


def tell_rates(folder: Path, rates: Rates) -> None:
    """Leave the rates of this process's device.

    Args:
        folder: That of its part.
        rates: What it has measured.
    """
    _write(folder / _RATES, asdict(rates))


def told_rates(out: Path) -> Rates | None:
    """The rates of a device that works on a part of a run, or None if none has told them yet.

    Args:
        out: The run's folder.
    """
    found = (kept_json(folder / _RATES) for folder in part_folders(out))
    return next((Rates(**rates) for rates in found if rates is not None), None)


def told_share(folder: Path) -> float:
    """The share of a part's work that is done, as its process told it last; 0 if it has not.

    Args:
        folder: That of the part.
    """
    return float(kept_json(folder / _SHARE) or 0.0)


def _write(file: Path, value: Any) -> None:
    try:
        write_json(file, value)
    except OSError as error:  # the run can do without
        log.debug("%s is not told: %s", file.name, error)
