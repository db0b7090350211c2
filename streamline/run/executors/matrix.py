"""How long all cells of a run take on its workers, by what the first of them has measured.

The process that starts the workers may have no device like theirs: until one of them has told what
its own does (:mod:`streamline.run.shards.telling`), cells are counted, from then on their seconds.

Example::

    matrix = Matrix(config, cells, parts, progress)
    matrix.show(left)                       # now and then: the cells that have not ended
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamline.progress import Progress, clock, planned, portions
from streamline.results.record import Identity
from streamline.run.cell import Cell, all_cells, expand
from streamline.run.config import RunConfig
from streamline.run.planning.asked import asked_of
from streamline.run.planning.hours import TimePlan, plan_hours
from streamline.run.planning.rates import Rates
from streamline.run.planning.rows import rows_of
from streamline.run.shards.dividing import divided
from streamline.run.shards.part import Part
from streamline.run.shards.telling import told_rates, told_share

__all__ = ["Matrix", "part_times", "whole_time"]

log = logging.getLogger(__name__)


class Matrix:
    """Shows how far the cells of a run are, and how long the others will take.

    Args:
        config: The run.
        cells: Its cells.
        parts: Them task by task.
        progress: Where to show it.
    """

    def __init__(
        self,
        config: RunConfig,
        cells: Sequence[Cell],
        parts: Sequence[Part],
        progress: Progress,
    ) -> None:
        self._config, self._progress, self._n_cells = config, progress, len(cells)
        self._parts = {part.folder(config.out): part.of(cells) for part in parts}
        self._name = f"{len(parts)} tasks"
        self._times: dict[Path, dict[Identity, float]] = {}
        progress.say("hours: said as soon as the first worker has measured its device")
        progress.stage(self._name, self._n_cells)

    def show(self, left: Sequence[Cell]) -> None:
        """Report how far it is.

        Args:
            left: The cells that have not ended yet.
        """
        if not self._times and left and (rates := told_rates(self._config.out)) is not None:
            self._plan(rates, left)
        ended = self._n_cells - len(left)
        if not self._times:
            self._progress.step(ended, self._n_cells)
            return
        open_now = {cell.identity for cell in left}
        done = total = 0.0
        for folder, times in self._times.items():
            whole = sum(times.values())
            over = sum(seconds for cell, seconds in times.items() if cell not in open_now)
            done += max(over, whole * told_share(folder))
            total += whole
        self._progress.step(done, total, f"{ended} of {self._n_cells} cells have ended")

    def _plan(self, rates: Rates, left: Sequence[Cell]) -> None:
        """Plan the cells that have not ended by a worker's rates, and say so."""
        open_now = set(left)
        parts = [[cell for cell in cells if cell in open_now] for cells in self._parts.values()]
        times = part_times(self._config, parts, rates)
        each = [sum(one.values()) for one in times]
        if sum(each):
            self._times = dict(zip(self._parts, times, strict=True))
            self._progress.say(f"time planned: {_said(times, 'tasks')} on {rates.title}")
            with planned(max(each)), portions([1.0])[0]:
                self._progress.stage(self._name, sum(each))


def part_times(
    config: RunConfig, parts: Sequence[Sequence[Cell]], rates: Rates
) -> list[dict[Identity, float]]:
    """How long each cell of some parts of a run takes, as far as the settings say.

    Args:
        config: The run.
        parts: The cells of each.
        rates: Of the device that each part has.

    Returns:
        For each part seconds by cell; what several share is with the first of them.
    """
    found: list[dict[Identity, float]] = [{} for _ in parts]
    for model in config.models:
        own = config.for_model(model)
        try:
            decoder, methods, rows = rows_of(model, own, expand(own, model))
            for times, part in zip(found, parts, strict=True):
                mine = [row for row in rows if row.cell in part]
                if mine:
                    plan = plan_hours(own, mine, methods, decoder, asked_of(own), rates=rates)
                    times |= {
                        row.cell.identity: sum(plan.cells.get(row.cell.label, {}).values())
                        for row in mine
                    }
                    loading = sum(row.seconds or 0.0 for row in plan.rows if row.stage == "load")
                    times[mine[0].cell.identity] += loading
        except Exception:  # its cells fail with it
            log.debug("%s cannot be planned", model, exc_info=True)
    return found


def whole_time(config: RunConfig, times: Mapping[str, TimePlan]) -> list[str]:
    """What is to be said of the hours of a whole run of which this is a shard; nothing of another.

    Args:
        config: The run.
        times: Of the shard's own models.
    """
    rates = next((plan.rates for plan in times.values() if plan.rates is not None), None)
    if config.shard is None or rates is None:
        return []
    parts = divided(config, int(config.shard.partition("/")[2]))
    found = part_times(config, parts, rates)
    n_cells = len(all_cells(config))
    return [f"time of all {n_cells} cells: {_said(found, 'shards')} like this one, {rates.title}"]


def _said(times: Sequence[Mapping[Identity, float]], noun: str) -> str:
    """All seconds of some parts, and those of the longest."""
    each = [sum(one.values()) for one in times]
    return (
        f"about {clock(sum(each))} of work, {clock(max(each))} where all {len(each)} {noun} run at "
        "the same time"
    )
