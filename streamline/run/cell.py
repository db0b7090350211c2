"""Cells: the units of a run, one record each.

A run is models x methods x sparsities x seeds x recoveries. The dense model is one cell whatever
the rest, and is always among them: stability and relative accuracy are measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from streamline.api.variants import Target
from streamline.registry import build_method
from streamline.results.record import Identity, Record, method_label
from streamline.results.samples import samples_path
from streamline.run.config import RunConfig
from streamline.run.inputs import CellInputs, cell_inputs, changes
from streamline.run.stage_config import MethodConfig

DENSE = "dense"
UNFINISHED = "not finished"  # how the reason of a record begins whose cell nobody has ended


@dataclass(frozen=True)
class Cell:
    """One model made smaller in one way.

    Attributes:
        model: Alias, hub id or folder, as given.
        method: Method spec.
        sparsity: Target: the fraction of parameters to remove.
        seed: Seed of calibration, training and whatever is random in the method.
        recovery: ``"none"``, ``"lora"`` or ``"kd"``.
    """

    model: str
    method: str
    sparsity: float
    seed: int
    recovery: str = "none"

    @property
    def is_dense(self) -> bool:
        """Whether this is the unpruned model that the others are measured against."""
        return self.method == DENSE and self.recovery == "none"

    @property
    def label(self) -> str:
        """A short name for progress and messages."""
        if self.is_dense:
            return DENSE
        seed = f" s{self.seed}" if self.seed else ""
        return method_label(f"{self.method} {self.sparsity:g}", self.recovery) + seed

    @property
    def identity(self) -> Identity:
        """What its record is found by."""
        return self.model, self.method, self.sparsity, self.seed, self.recovery

    def record(self, **values: Any) -> dict[str, Any]:
        """The keys of a record of this cell."""
        return {
            "model": self.model,
            "method": self.method,
            "sparsity": self.sparsity,
            "seed": self.seed,
            "recovery": self.recovery,
            **values,
        }

    @property
    def slug(self) -> str:
        """A file name that no other cell has."""
        return samples_path("", Record.build(self.record(status="ok"))).stem


@dataclass(frozen=True)
class CellJob:
    """A cell to be run.

    Attributes:
        cell: The cell.
        target: What the stages are to make.
        inputs: What its numbers depend on, by content.
    """

    cell: Cell
    target: Target
    inputs: CellInputs

    @cached_property
    def key(self) -> str:
        """Content key of everything that its numbers depend on."""
        return self.inputs.key

    @cached_property
    def model_key(self) -> str:
        """Content key of the model alone; its answers are kept under it."""
        return self.inputs.model_key


def cell_job(cell: Cell, shared: Mapping[str, Any]) -> CellJob:
    """What is to be run for a cell.

    Args:
        cell: The cell.
        shared: What decides the numbers of all cells of its model, from
            :func:`streamline.run.inputs.shared_inputs`.

    Raises:
        UnknownNameError: If nobody knows the method.
        ConfigError: If a field of the method does not fit.
    """
    method = build_method(cell.method)
    target = Target(
        label=cell.slug,
        title=cell.label,
        method=method,
        sparsity=cell.sparsity,
        seed=cell.seed,
        recovery=cell.recovery,
        shares=replace(cell, recovery="none").slug,
    )
    return CellJob(cell, target, cell_inputs(cell.record(), shared, method))


def expand(config: RunConfig, model: str) -> list[Cell]:
    """The cells of one model, the dense one first.

    Args:
        config: The run, as the model has it (:meth:`RunConfig.for_model`).
        model: One of its models.

    Returns:
        Cells without repetition, in the order of methods, sparsities, seeds and recoveries.
    """
    cells = [Cell(model, DENSE, 0.0, config.seeds[0])]
    for method in config.methods:
        if method == DENSE:
            continue
        own = config.per_method.get(method, MethodConfig())
        cells += [
            Cell(model, method, sparsity, seed, recovery)
            for sparsity in own.sparsities or config.sparsities
            for seed in config.seeds
            for recovery in own.recovery or config.recovery
        ]
    return cells


def all_cells(config: RunConfig) -> list[Cell]:
    """The cells of all models of a run, in the order of the models."""
    return [cell for model in config.models for cell in expand(config.for_model(model), model)]


def unfinished(cells: Sequence[Cell], records: Mapping[Identity, Record]) -> list[Cell]:
    """Those of some cells that nobody has ended: without a record, or with one that says so.

    Args:
        cells: The cells.
        records: Records by their identity.
    """
    reasons = {identity: record.reason or "" for identity, record in records.items()}
    return [c for c in cells if reasons.get(c.identity, UNFINISHED).startswith(UNFINISHED)]


def replaced(jobs: Sequence[CellJob], records: Sequence[Record | None]) -> list[str]:
    """What has changed since cells were recorded, and which are done again for it."""
    found: dict[str, list[str]] = {}
    for job, record in zip(jobs, records, strict=True):
        before = None if record is None else record.extra("inputs")
        if record is None or record.status == "failed" or record.key == job.key:
            continue
        known = changes(before, job.inputs.to_json()) if isinstance(before, dict) else []
        found.setdefault("; ".join(known) or "other settings", []).append(job.cell.label)
    return [f"changed: {what}: done again: {', '.join(cells)}" for what, cells in found.items()]


def unrecorded(jobs: Sequence[CellJob], records: Sequence[Record | None]) -> list[CellJob]:
    """The cells without a record that still holds."""
    return [
        job
        for job, record in zip(jobs, records, strict=True)
        if record is None or record.status == "failed" or record.key != job.key
    ]
