"""What a run measures of its variants: each shape once, in seconds that are fixed beforehand.

Example::

    bench = Bench(decoder, "quick", records, cells=12)
    found = bench.measure({"shortgpt@0.25": path}, cost=40.0)
    found["shortgpt@0.25"]["decode"]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path
from streamline.evaluation.efficiency.allowance import QUICK_SECONDS, QUICK_SHARE
from streamline.evaluation.efficiency.measure import Beside, unmeasurable
from streamline.results.record import Record, label

__all__ = ["Bench", "lacks"]

_LEVELS = ("quick", "full")


def lacks(record: Record, level: str) -> bool:
    """Whether a finished cell has not been measured as thoroughly as is wanted.

    Args:
        record: The cell's.
        level: ``quick``, ``full`` or ``off``.
    """
    if level == "off" or record.status != "ok":
        return False
    there = record.efficiency
    return there is None or _LEVELS.index(there.level) < _LEVELS.index(level)


class Bench:
    """Measures the variants of one model, cells of equal shape together.

    Args:
        decoder: The dense model.
        level: ``quick`` or ``full``.
        records: What has been measured before, of the same model.
        cells: How many cells there are to measure.
        seconds: What quick measuring may take; None for what
            :mod:`streamline.evaluation.efficiency.allowance` has.
    """

    def __init__(
        self,
        decoder: Decoder,
        level: str,
        records: Iterable[Record],
        cells: int,
        seconds: float | None = None,
    ) -> None:
        self._decoder = decoder
        self._level = level
        self._beside = Beside(decoder, level)
        self._cells = cells
        self._seconds = seconds
        self._cost = self._spent = 0.0
        self._known: dict[str, dict[str, Any]] = {}
        for record in records:
            there = record.efficiency
            if there and there.shape and there.decode and there.measured_on is None:
                values = there.model_dump() | {"measured_on": label(record)}
                self._known[there.shape] = values

    def measure(self, paths: Mapping[str, Path], cost: float) -> dict[str, dict[str, Any]]:
        """Measure variants, those of a shape that is known already excepted.

        Args:
            paths: Label of the cell to its path.
            cost: Seconds that these cells have taken, of which measuring may take its share.

        Returns:
            Label to the values of :class:`streamline.results.blocks.efficiency.Efficiency`; what
            cannot be measured has a ``reason``.
        """
        self._cost += cost
        self._cells = max(0, self._cells - len(paths))
        why = unmeasurable(self._decoder)
        if why is not None:
            return {name: {"level": self._level, "reason": why} for name in paths}
        keys = {name: self._key(path) for name, path in paths.items()}
        new = len({key for key in keys.values() if key not in self._known})
        found = {}
        for name, path in paths.items():
            key = keys[name]
            if key is None or key not in self._known:
                values = self._beside.measure(path, self._share(new))
                self._spent += values["seconds"]
                new -= 1
                if key is not None:
                    values["shape"] = key
                    self._known[key] = values | {"measured_on": name, "seconds": None}
                found[name] = values
            else:
                found[name] = self._known[key] | {"seconds": None}
                if found[name]["measured_on"] == name:  # the same cell, before it was done again
                    found[name]["measured_on"] = None
        return found

    def _key(self, path: Path) -> str | None:
        """A variant's shape, or None if it cannot be put together; measuring says why."""
        try:
            return self._beside.key(path)
        except Exception:
            return None

    def _share(self, new: int) -> float | None:
        """Seconds for one shape, of those that are left for this one and all that may follow."""
        if self._level == "full":
            return None
        allowed = self._seconds or max(QUICK_SECONDS, QUICK_SHARE * self._cost)
        return max(0.0, allowed - self._spent) / max(1, new + self._cells)
