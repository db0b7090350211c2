"""Cells: the units of a run, one record each.

A run is models x methods x sparsities x seeds x recoveries. The dense model is one cell whatever
the rest, and is always among them: stability and relative accuracy are measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamline import __version__
from streamline.api.variants import Target
from streamline.hashing import content_key, folder_key
from streamline.registry import build_method
from streamline.results.record import Record, method_label
from streamline.results.samples import samples_path
from streamline.run.config import RunConfig
from streamline.run.settings import names
from streamline.run.stage_config import MethodConfig

DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One model made smaller in one way.

    Attributes:
        model: Alias, hub id or folder, as given.
        method: Method spec.
        sparsity: Target: the fraction of parameters to remove.
        seed: Seed of calibration, training and whatever is random in the method.
        recovery: ``"none"`` or ``"lora"``.
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
    def identity(self) -> tuple[str, str, float, int, str]:
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
        key: Content key of everything that its numbers depend on.
    """

    cell: Cell
    target: Target
    key: str


def cell_job(cell: Cell, config: RunConfig, fingerprint: str) -> CellJob:
    """What is to be run for a cell.

    Args:
        cell: The cell.
        config: The run, as the cell's model has it.
        fingerprint: Content hash of the dense model.

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
    )
    return CellJob(cell, target, cell_key(cell, config, repr(method), fingerprint))


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


def cell_key(cell: Cell, config: RunConfig, method_repr: str, fingerprint: str) -> str:
    """The content key of everything that a cell's numbers depend on.

    Args:
        cell: The cell.
        config: The run.
        method_repr: The method with all its fields.
        fingerprint: Content hash of the dense model.

    Returns:
        64 hexadecimal digits; equal keys mean that the cell need not be computed again.
    """
    values = config.model_dump(mode="json")
    inputs = {name: values[name] for name in names(RunConfig, "keyed")}
    if config.include_path is not None:
        inputs["include"] = folder_key(config.include_path)
    if cell.recovery != "none":
        inputs[cell.recovery] = values[cell.recovery]
    if cell.is_dense:
        del inputs["calibration"], inputs["training"]
    return content_key(
        {
            "cell": cell.record(),
            "method": method_repr,
            "model": fingerprint,
            "version": __version__,
            **inputs,
        }
    )
