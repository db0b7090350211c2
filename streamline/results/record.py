"""One cell of a run as a typed record.

A run writes one record after each cell (model, method, sparsity, seed, recovery); tables, reports
and comparisons read nothing else. A number that was not measured is null, and so is one that came
out as NaN or infinite; then the record marks it.

Example::

    record = Record.build(
        {"model": "m", "method": "shortgpt", "sparsity": 0.25, "status": "ok"}
    )
    label(record)                       # "shortgpt@0.25"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from streamline.errors import ConfigError
from streamline.results.blocks.base import Block
from streamline.results.blocks.efficiency import Efficiency
from streamline.results.metrics import METRICS

__all__ = [
    "SCHEMA_VERSION",
    "Cost",
    "Parameters",
    "PlanSummary",
    "Record",
    "Summary",
    "TaskResult",
    "label",
    "method_label",
]

SCHEMA_VERSION = 1

#: What lies in [0, 1], but for rounding.
Fraction = Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]

Identity = tuple[str, str, float, int, str]


class PlanSummary(Block):
    """What was removed from the model: original, 0-based layer indices."""

    removed_layers: list[int] = Field(default_factory=list)
    kept_layers: list[int] = Field(default_factory=list)
    replacement: str | None = None


class Parameters(Block):
    """Exact counts, tied weights once, replacements included."""

    dense: int | None = Field(None, ge=0)
    pruned: int | None = Field(None, ge=0)
    removed_fraction: float | None = Field(None, le=1)


class TaskResult(Block):
    """One task's value under its own metric. Accuracies and stabilities lie in [0, 1].

    Further keys in use: ``agreement``, ``stability_stderr``, ``counts`` (``both_right``, ``lost``,
    ``gained``, ``both_wrong``), ``version`` (the task's), ``protocol``, ``shots``, ``prompts``
    where they are not the task's own, and ``subtasks`` where the answers are those of several
    tasks.
    """

    metric: str
    value: float | None = None
    stderr: float | None = Field(None, ge=0)
    n: int | None = Field(None, ge=0)
    stability: Fraction | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """How its questions were asked: what must be equal wherever two results are paired."""
        known = {what: self.extra(what) for what in ("protocol", "version", "shots")}
        prompts = {"prompts": self.extra("prompts") or "the task's own"}
        return {what: value for what, value in known.items() if value is not None} | prompts

    @model_validator(mode="after")
    def _in_range(self) -> TaskResult:
        """Refuse an accuracy, or another fraction, beyond 0 and 1."""
        known = METRICS.get(self.metric)
        fraction = known is not None and known.is_fraction and self.value is not None
        if fraction and not -1e-9 <= (self.value or 0.0) <= 1 + 1e-9:
            raise ValueError(f"{self.metric} is {self.value}, and lies between 0 and 1")
        return self


class Summary(Block):
    """The averages over the tasks; perplexity by text."""

    accuracy: Fraction | None = None
    relative_accuracy: float | None = Field(None, ge=0)
    stability: Fraction | None = None
    perplexity: dict[str, Annotated[float, Field(ge=0)] | None] = Field(default_factory=dict)


class Cost(Block):
    """What the cell cost: seconds, bytes, tokens, FLOPs (a multiplication and an addition are two).

    ``calibrate_with`` and ``train_with`` are the numbers of cells whose seconds and peak of memory
    were taken together: 1 means that they are the cell's own, more that the seconds are its part
    and the peak is that of all. Tokens, steps and FLOPs are what the cell needs by itself, whoever
    it shared them with. ``calibrate_tokens`` are those of the calibration text, ``train_tokens``
    those that were trained on, epochs counted; ``train_flops`` follow from shapes
    (:mod:`streamline.training.flops`), ``calibrate_flops`` from what was run to calibrate and to
    decide (:mod:`streamline.engine.meter`; null where a method runs the model by a loop of its
    own). Peaks are those of accelerators, null on a CPU.
    """

    calibrate_s: float | None = Field(None, ge=0)
    calibrate_tokens: int | None = Field(None, ge=0)
    calibrate_flops: float | None = Field(None, ge=0)
    calibrate_peak_memory_bytes: int | None = Field(None, ge=0)
    calibrate_with: int | None = Field(None, ge=1)
    train_s: float | None = Field(None, ge=0)
    train_tokens: int | None = Field(None, ge=0)
    train_steps: int | None = Field(None, ge=0)
    train_flops: float | None = Field(None, ge=0)
    train_peak_memory_bytes: int | None = Field(None, ge=0)
    train_with: int | None = Field(None, ge=1)
    eval_s: float | None = Field(None, ge=0)
    peak_memory_bytes: int | None = Field(None, ge=0)


class Record(Block):
    """One cell of a run.

    ``sparsity`` is the target, ``parameters.removed_fraction`` what came out. ``key`` is
    the content key of everything that the cell depends on; ``method_repr`` holds the method's
    hyper-parameters; ``efficiency`` how fast and how large its model is, null where that was not
    asked for; ``texts`` what was read of which text by use (calibration, training, held-out), with
    its hash, documents, domains and the largest fraction of one document; ``notes`` whatever the
    method reports. ``notes["flag"]`` marks a cell whose achieved sparsity lies far from the target,
    ``notes["worse"]`` a trained one that reads worse than ``notes["dropped"]``: its layers dropped
    with nothing in their place.
    """

    model: str
    method: str
    sparsity: float = Field(ge=0, lt=1)
    seed: int = 0
    recovery: str = "none"
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    plan: PlanSummary | None = None
    parameters: Parameters = Field(default_factory=Parameters)
    texts: list[dict[str, Any]] = Field(default_factory=list)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    summary: Summary = Field(default_factory=Summary)
    cost: Cost = Field(default_factory=Cost)
    efficiency: Efficiency | None = None
    versions: dict[str, Any] = Field(default_factory=dict)
    key: str | None = None
    method_repr: str | None = None
    notes: dict[str, Any] = Field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        """The cell: (model, method, sparsity, seed, recovery)."""
        return (self.model, self.method, self.sparsity, self.seed, self.recovery)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Record:
        """Check a mapping and make a record of it.

        NumPy scalars become Python's. NaN and infinities become null; their keys are listed
        under ``notes["not_finite"]`` and, unless there is a reason already, as the reason.

        Args:
            values: The record's keys.

        Returns:
            The record; ``to_json`` gives plain JSON.

        Raises:
            ConfigError: If a key is missing or of the wrong type; the message names it.
        """
        lost: list[str] = []
        clean = _finite(values, "", lost)
        try:
            record = cls.model_validate(clean)
        except ValidationError as error:
            where = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()
            )
            raise ConfigError(
                f"Not a record of schema {SCHEMA_VERSION}: {where}. The form is described in "
                "streamline/results/record.py."
            ) from None
        if lost:
            record.notes["not_finite"] = lost
            record.reason = record.reason or f"not finite, written as null: {', '.join(lost)}"
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, every known key present."""
        return self.model_dump(mode="json")


def method_label(method: str, recovery: str = "none") -> str:
    """A method with the stage after it, as in ``shortgpt +lora``."""
    return method if recovery == "none" else f"{method} +{recovery}"


def label(record: Record) -> str:
    """A short name of a cell, as in ``shortgpt@0.25 +lora seed 1`` or ``dense``."""
    sparsity = f"@{record.sparsity:g}" if record.sparsity else ""
    seed = f" seed {record.seed}" if record.seed else ""
    return method_label(f"{record.method}{sparsity}", record.recovery) + seed


def _finite(value: Any, where: str, lost: list[str]) -> Any:
    """Plain values with None for NaN and infinities; ``lost`` collects where they stood."""
    if isinstance(value, Mapping):
        return {
            key: _finite(item, f"{where}.{key}" if where else str(key), lost)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_finite(item, f"{where}[{index}]", lost) for index, item in enumerate(value)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _finite(value.tolist(), where, lost)
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(f"{where}: {value}")
        return None
    return value
