"""Writes the record of a cell: done, skipped or failed; and until then, how far it has come.

The file of records is written whole each time, so how far cells have come is written every few
seconds, and at the end, whatever ends them::

    with recorder:
        recorder.begin(jobs)
        recorder.reached(jobs, "piqa answered")     # written by now, or soon
        recorder.done(job, ...)                     # written now
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import cached_property
from pathlib import Path
from threading import RLock, Timer
from typing import Any

from streamline.api.variants import Variant
from streamline.checkpoints.formats.serving import served
from streamline.distributed.team import leads
from streamline.engine.budget import removed_fraction
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path as LayerPath
from streamline.environment import versions
from streamline.errors import UnsupportedModelError, reason
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.files import write_json_atomic
from streamline.progress import Progress
from streamline.results.assess import Assessment, CellResult
from streamline.results.record import Cost
from streamline.results.record_file import upsert
from streamline.results.samples import write_samples
from streamline.run.cell import UNFINISHED, CellJob
from streamline.run.config import RunConfig
from streamline.run.deciding.choices import Choices
from streamline.run.deciding.decide import remarks
from streamline.run.folder import write_checksums
from streamline.run.shards.part import WHOLE, Part
from streamline.sources.models import hub_commit, planned_model

log = logging.getLogger(__name__)

_COSTS = tuple(Cost.model_fields)
_EVERY_S = 5.0  # at most so long is it not written how far cells have come


class Recorder:
    """Turns finished cells into records of a run's folder.

    Args:
        config: The run.
        name: The model.
        fingerprint: Content hash of the model; empty if it cannot be read.
        progress: Where to report that a cell was skipped or failed.
        part: The part of the run that its records belong to.
        choices: What the run left open and what it became, with the reasons.
    """

    def __init__(
        self,
        config: RunConfig,
        name: str,
        fingerprint: str,
        progress: Progress,
        part: Part = WHOLE,
        choices: Choices | None = None,
    ) -> None:
        self.config = config
        self.folder = part.folder(config.out)
        self.name = name
        self.fingerprint = fingerprint
        self.progress = progress
        self.decided = remarks(choices or {})
        self._open: dict[str, tuple[CellJob, list[str]]] = {}
        self._behind: dict[str, None] = {}  # open cells that have come further than is written
        self._shown = 0.0
        self._later: Timer | None = None
        self._lock = RLock()

    def __enter__(self) -> Recorder:
        """Write down how far cells have come until this ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write down what is not written yet."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
            self._show()

    def done(
        self,
        job: CellJob,
        variant: Variant,
        path: LayerPath,
        costs: Mapping[str, float | None],
        assessment: Assessment,
        facts: dict[str, Any],
        texts: Sequence[Mapping[str, Any]] = (),
        absent: Sequence[TaskEntry] = (),
        efficiency: Mapping[str, Any] | None = None,
        dropped: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a cell with its figures.

        Args:
            job: The cell.
            variant: What the stages made.
            path: Its path through the model, for the exact count.
            costs: What it cost.
            assessment: Its figures.
            facts: Where the questions came from.
            texts: What its calibration, trainings and held-out text are made of.
            absent: Rows of the report that could not be asked; they are null.
            efficiency: How fast and how large it is; None if that was not wanted.
            dropped: Of a trained replacement, the perplexity where its layers are dropped.
        """
        write_checksums(self.config.out, job.cell)
        dense, pruned = self._dense.n_parameters(), path.n_parameters()
        achieved = removed_fraction(dense, pruned)
        notes: dict[str, Any] = dict(variant.pruned.notes)
        half = 0.5 * self._dense.layer_parameters(0) / dense
        if abs(achieved - job.cell.sparsity) > half + 1e-12:
            notes.setdefault(
                "flag",
                f"target {job.cell.sparsity:.4f}, achieved {achieved:.4f}: "
                f"more than half a layer ({half:.4f}) apart",
            )
        if self.config.quick:
            notes["trial"] = "--quick: too few questions and tokens for its numbers to count"
        if self.decided:
            notes["auto"] = self.decided
        if variant.training:
            notes["training"] = dict(variant.training)
        tasks, summary = dict(assessment.tasks), dict(assessment.summary)
        if dropped is not None:
            notes["dropped"] = dict(dropped)
            if (warning := _worse(dropped, summary["perplexity"])) is not None:
                notes["worse"] = warning
                self.progress.say(f"{job.cell.label}: {warning}")
        if facts["unavailable"]:
            notes["missing"] = dict(facts["unavailable"])
        for row in absent:
            if row.protocol == "perplexity":
                summary["perplexity"] = {**summary["perplexity"], row.name: None}
            else:
                tasks[row.name] = {"metric": row.metric, "value": None, "protocol": row.protocol}
        plan = variant.pruned.plan
        self._write(
            job,
            costs=costs,
            status="ok",
            plan={
                "removed_layers": plan.removed_layers,
                "kept_layers": plan.kept_layers,
                "replacement": plan.replacement,
            },
            parameters={"dense": dense, "pruned": pruned, "removed_fraction": achieved},
            texts=[dict(one) for one in texts],
            tasks=tasks,
            summary=summary,
            efficiency=efficiency,
            serves_in=served(path),
            notes=notes | {"data": facts},
        )

    def pruned(self, cells: Iterable[tuple[CellJob, Variant]]) -> None:
        """Write down what methods decided; of the dense model there is nothing to say."""
        decided = [(job, variant) for job, variant in cells if variant.target.sparsity]
        for job, variant in decided if leads() else ():
            plan, notes = variant.pruned.plan, variant.pruned.notes
            about = {"cell": job.cell.record(), "method": repr(variant.target.method), **notes}
            file = self.config.out / "plans" / f"{job.cell.slug}.json"
            write_json_atomic(file, plan.to_json() | {"notes": about})
        self.reached([job for job, _ in decided], "pruned")

    def answered(self, job: CellJob, result: CellResult) -> None:
        """Write a cell's answers, question by question, in place of those to other tasks."""
        file = self.config.out / "samples" / f"{job.cell.slug}.parquet"
        if len(result.samples):
            write_samples(file, result.samples)
        else:
            file.unlink(missing_ok=True)

    def skipped(self, job: CellJob, reason: str, *, memory: bool = False) -> None:
        """Record that a method cannot meet a cell, and why.

        Args:
            job: The cell.
            reason: Why.
            memory: Whether it is for want of memory, so that it is tried again.
        """
        self.progress.say(f"skipped: {job.cell.label}: {reason}")
        self._write(job, status="skipped", reason=reason, notes={"memory": True} if memory else {})

    def failed(self, job: CellJob, error: Exception, costs: Mapping[str, float]) -> None:
        """Record an error; for an unsupported model the cell is skipped.

        Args:
            job: The cell.
            error: What ended it.
            costs: What it had cost until then.
        """
        why = reason(error)
        if isinstance(error, UnsupportedModelError):
            self.skipped(job, why)
            return
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
        log.info("failed: %s", job.cell.label, exc_info=error)
        self.progress.say(f"failed: {job.cell.label}: {why}")
        text = "".join(traceback.format_exception(error))
        self._write(
            job,
            status="failed",
            costs=costs,
            reason=why,
            notes={"where": where, "traceback": text} if where else {"traceback": text},
        )

    def begin(self, jobs: Sequence[CellJob]) -> None:
        """Record cells as not finished, so that a folder shows what is missing if the run ends.

        Args:
            jobs: Cells that are about to be run and have no record that holds.
        """
        with self._lock:
            self._open = {job.cell.slug: (job, []) for job in jobs}
            self._behind = dict.fromkeys(self._open)
            self._show()

    def reached(self, jobs: Iterable[CellJob], what: str) -> None:
        """Record how far cells have come; those that are recorded already stay as they are."""
        with self._lock:
            for name in [job.cell.slug for job in jobs if job.cell.slug in self._open]:
                self._open[name][1].append(what)
                self._behind[name] = None
            wait = self._shown + _EVERY_S - time.monotonic()
            if wait <= 0:
                self._show()
            elif self._behind and self._later is None and leads():
                self._later = Timer(wait, copy_context().run, (self._show_late,))
                self._later.daemon = True
                self._later.start()

    def _show_late(self) -> None:
        """Write down what has been put off; if that fails now, what is written next has it too."""
        with self._lock:
            self._later = None
            try:
                self._show()
            except Exception:  # of a disk; whatever is written next says so
                log.debug("how far cells have come could not be written", exc_info=True)

    def _show(self, *records: Mapping[str, Any]) -> None:
        """Write records, and how far other cells have come."""
        if leads() and (self._behind or records):
            upsert(self.folder, *map(self._unfinished, self._behind), *records)
        self._behind.clear()
        self._shown = time.monotonic()

    def _unfinished(self, name: str) -> dict[str, Any]:
        job, reached = self._open[name]
        state = f"done so far: {', '.join(reached)}" if reached else "nothing of it is done"
        why = f"{UNFINISHED}: {state}. The same command goes on with it"
        return self._values(job, status="failed", reason=why)

    @cached_property
    def _dense(self) -> Decoder:
        """The dense model without weights, for counting."""
        trusted = self.config.trust_remote_code
        return Decoder(planned_model(self.name, trust_remote_code=trusted))

    def _write(self, job: CellJob, **values: Any) -> None:
        with self._lock:
            self._open.pop(job.cell.slug, None)
            self._behind.pop(job.cell.slug, None)
            self._show(*([self._values(job, **values)] if leads() else []))

    def _values(
        self,
        job: CellJob,
        *,
        status: str,
        costs: Mapping[str, float | None] | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        """The keys of a record."""
        model = {}
        if self.fingerprint:
            model = {"model_sha256": self.fingerprint, "model_commit": hub_commit(self.name)}
        return job.cell.record(
            status=status,
            key=job.key,
            answers_key=job.model_key,
            inputs=job.inputs.to_json(),
            method_repr=repr(job.target.method),
            cost={name: (costs or {}).get(name) for name in _COSTS},
            versions=versions(self.config.device) | model,
            **values,
        )


def _worse(dropped: Mapping[str, Any], perplexity: Mapping[str, float | None]) -> str | None:
    """What is to be said of a replacement that reads worse than nothing in its place, or None."""
    own = perplexity.get(dropped["text"])
    if own is None or own <= dropped["perplexity"]:
        return None
    return (
        f"worse than its layers dropped: {dropped['text']} perplexity {own:.4g}, and "
        f"{dropped['perplexity']:.4g} with nothing in their place; give more --train-tokens, a "
        "lower learning_rate, or a start that is no worse where the method has one "
        "(+init=linear in closed form, +residual=true at the dropped layers)"
    )
