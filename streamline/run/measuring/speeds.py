"""The speed of a run's cells: of each as it is evaluated, and of those that were done without it.

A cell's answers do not depend on it, so it is not in a cell's key; switched on later it is measured
for the cells that are there, without asking them anything again.

Example::

    speeds = Speeds(config, name, dense, jobs)
    efficiency = speeds.of({job: path}, cost=12.5)[job.target.label]
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from streamline.api.guards import no_exit
from streamline.api.pruning import prune
from streamline.api.variants import Dense, Failure, Variant
from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.engine.paths import Path as LayerPath
from streamline.errors import reason
from streamline.evaluation.efficiency.bench import Bench, lacks
from streamline.progress import Progress
from streamline.results.record import Record, label
from streamline.results.record_file import find, upsert
from streamline.run.cell import CellJob
from streamline.run.config import RunConfig
from streamline.run.inputs import Sources
from streamline.run.measuring.texts import calibration_tokens
from streamline.run.shards.part import WHOLE, Part
from streamline.sources.batches import TokenBatches

__all__ = ["Speeds", "measure_done", "seconds_of", "unmeasured"]

log = logging.getLogger(__name__)


class Speeds:
    """Measures cells of one model beside its dense model.

    Args:
        config: The run, as the model has it.
        name: The model.
        dense: The model itself.
        jobs: The cells that are to be measured.
        progress: Where to report what is being done.
        part: The part of the run that they belong to.
    """

    def __init__(
        self,
        config: RunConfig,
        name: str,
        dense: Dense,
        jobs: Sequence[CellJob],
        progress: Progress,
        part: Part = WHOLE,
    ) -> None:
        self._progress = progress
        self._level = config.efficiency
        self._bench: Bench | None = None
        if config.efficiency != "off":
            records = [record for record in part.records(config.out) if record.model == name]
            self._bench = Bench(
                dense.decoder, config.efficiency, records, len(jobs), config.efficiency_seconds
            )

    def of(
        self, paths: Mapping[str, tuple[CellJob, LayerPath]], cost: float
    ) -> dict[str, dict[str, Any]]:
        """The values of the records' ``efficiency``; empty where it is not wanted.

        Args:
            paths: By any name the cells, each with its path.
            cost: Seconds that they took.

        Returns:
            The values by the same names. What cannot be measured has a reason in its place.
        """
        if self._bench is None or not paths:
            return {}
        self._progress.stage(f"speed of {len(paths)} model{'s' * (len(paths) > 1)}")
        labels = {name: _label(job) for name, (job, _) in paths.items()}
        named = {labels[name]: path for name, (_, path) in paths.items()}
        measure = partial(self._bench.measure, named, cost)
        try:
            with no_exit(f"a module of {' or '.join(labels.values())}"):
                found = shared(measure)  # on a machine that does nothing else
        except Exception as error:  # a cell is worth no less without it
            log.debug("the speed of %s could not be measured", labels, exc_info=True)
            why = f"could not be measured: {reason(error)}"
            return {name: {"level": self._level, "reason": why} for name in paths}
        return {name: found[labels[name]] for name in paths}


def seconds_of(results: Iterable[Any], variants: Sequence[Variant]) -> float:
    """What cells have taken, from their first stage to their last answer.

    Args:
        results: What evaluating them gave.
        variants: The cells as the stages made them.
    """
    asked = sum(getattr(result, "seconds", 0.0) for result in results)
    stages = ("calibrate_s", "train_s")
    return asked + sum(one.costs.get(name, 0.0) for one in variants for name in stages)


def unmeasured(
    config: RunConfig, jobs: Sequence[CellJob], part: Part = WHOLE
) -> list[tuple[CellJob, Record]]:
    """Cells that are done, but whose speed is not known as well as the run wants it."""
    records = part.records(config.out)
    found = ((job, find(records, *job.cell.identity)) for job in jobs)
    return [
        (job, record)
        for job, record in found
        if record is not None and record.key == job.key and lacks(record, config.efficiency)
    ]


def measure_done(
    config: RunConfig,
    name: str,
    dense: Dense,
    sources: Sources,
    cells: Sequence[tuple[CellJob, Record]],
    progress: Progress,
    part: Part = WHOLE,
) -> None:
    """Measure cells that are done, and write it into their records.

    They are pruned again, from what is kept where it is kept; nothing is trained and nothing asked,
    since a speed depends on shapes alone.

    Args:
        config: The run, as the model has it.
        name: The model.
        dense: The model itself.
        sources: What the names in the settings mean.
        cells: From :func:`unmeasured`.
        progress: Where to report what is being done.
        part: The part of the run that they belong to.
    """
    batches = TokenBatches(dense.tokenizer, sources.revisions)
    speeds = Speeds(config, name, dense, [job for job, _ in cells], progress, part)
    groups: dict[str, list[tuple[CellJob, Record]]] = {}  # of models of their own one at a time
    for job, record in cells:
        own = job.target.decision if job.target.method.returns_model else ""
        groups.setdefault(own, []).append((job, record))
    for group in groups.values():
        made = prune(
            [job.target for job, _ in group],
            dense,
            partial(calibration_tokens, config, batches),
            config.out / "cache",
            progress,
        )
        paths = {
            job.target.label: (job, one.pruned.path(dense.decoder, job.target.name))
            for (job, _), one in zip(group, made, strict=True)
            if not isinstance(one, Failure)
        }
        found = speeds.of(paths, sum(record.cost.eval_s or 0.0 for _, record in group))
        for (job, record), one in zip(group, made, strict=True):
            if isinstance(one, Failure):
                values = {"level": config.efficiency, "reason": reason(one.error)}
            else:
                values = found[job.target.label]
            measured = Record.build(record.to_json() | {"efficiency": values})
            if leads():
                upsert(part.folder(config.out), measured)


def _label(job: CellJob) -> str:
    """A cell's name as reports and commands write it."""
    return label(Record.build(job.cell.record(status="ok")))
