"""What a run would do, from configs alone: cells, exact parameter counts, compute, memory, disk.

Nothing is downloaded but a model's config, and for the known models not even that.

Example:
    for row in plan_run(config).rows:
        print(row.cell.label, row.removed_layers, row.removed_fraction)
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamline.assets import load_config
from streamline.cells import Cell, expand
from streamline.config import RunConfig
from streamline.decoder import Decoder
from streamline.errors import StreamlineError
from streamline.specs import build_method

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Row:
    """One cell as planned.

    Attributes:
        cell: The cell.
        n_removed: Layers taken out or stood for; None if the method keeps all or only a run tells.
        dense: Parameters of the dense model.
        pruned: Parameters that would remain; None if only a run can tell.
        reason: Why the cell would be skipped, or None.
    """

    cell: Cell
    n_removed: int | None
    dense: int
    pruned: int | None
    reason: str | None = None

    @property
    def removed_fraction(self) -> float | None:
        """Share of the dense model's parameters that would be gone."""
        return None if self.pruned is None else 1.0 - self.pruned / self.dense

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return self.cell.record(
            removed_layers=self.n_removed,
            dense=self.dense,
            pruned=self.pruned,
            removed_fraction=self.removed_fraction,
            reason=self.reason,
        )


@dataclass
class Estimate:
    """A whole run as planned.

    Attributes:
        rows: One for each cell.
        tokens: Tokens by use: calibration, training, held-out text.
        flops: Estimated floating-point operations by stage, 2 per parameter and token forward and
            4 more backward; the evaluation's are per 1,000 tokens of questions, since only the
            questions tell their length.
        memory_bytes: Least device memory: the largest model's weights and what training adds.
        disk_bytes: Weights to download or convert.
    """

    rows: list[Row] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    disk_bytes: int = 0


def plan_run(config: RunConfig) -> Estimate:
    """Plan every cell of a run from configs alone.

    Args:
        config: The run.

    Returns:
        The rows and what they would cost.

    Raises:
        StreamlineError: If a model's config or a method cannot be had.
    """
    estimate = Estimate()
    training = config.training
    estimate.tokens = {
        "calibration": config.calibration.n_samples * config.calibration.length,
        "training": training.n_tokens * training.epochs,
        "heldout": config.perplexity.n_tokens,
    }
    for model in config.models:
        decoder = Decoder.from_config(
            load_config(model, trust_remote_code=config.trust_remote_code)
        )
        rows = [_row(cell, decoder) for cell in expand(config, model)]
        estimate.rows += rows
        _add_costs(estimate, rows, decoder, config)
    return estimate


def _row(cell: Cell, decoder: Decoder) -> Row:
    dense = decoder.n_parameters()
    method = build_method(cell.method)
    reason = method.unsupported(decoder)
    if cell.sparsity == 0.0:
        return Row(cell, 0, dense, dense, reason)
    if reason is not None:
        return Row(cell, None, dense, None, reason)
    try:
        size = method.size(decoder, cell.sparsity)
    except StreamlineError as error:
        return Row(cell, None, dense, None, str(error))
    if size is None:
        return Row(cell, None, dense, None)
    return Row(cell, size.n_removed, dense, size.pruned)


def _add_costs(estimate: Estimate, rows: list[Row], decoder: Decoder, config: RunConfig) -> None:
    """Add one model's compute, memory and disk."""
    dense = decoder.n_parameters()
    body = sum(map(decoder.layer_parameters, range(decoder.n_layers)))
    trained = [
        row
        for row in rows
        if row.reason is None and row.cell.sparsity and build_method(row.cell.method).trains
    ]
    added = sum(_added(row, decoder) for row in trained)
    steps = {
        "calibration": 2.0 * body * estimate.tokens["calibration"],
        "training": (2.0 * body * bool(trained) + 6.0 * added) * estimate.tokens["training"],
        "evaluation_per_1000_tokens": 2.0
        * 1000
        * sum((row.pruned or row.dense) for row in rows if row.reason is None),
    }
    for name, value in steps.items():
        estimate.flops[name] = estimate.flops.get(name, 0.0) + value
    weights = dense * _BYTES[config.dtype]
    # Trained networks are held in float32 with gradient, two moments and the best weights.
    estimate.memory_bytes = max(estimate.memory_bytes, weights + added * 4 * 5)
    estimate.disk_bytes += dense * 2


def _added(row: Row, decoder: Decoder) -> int:
    """Parameters that a row's replacement brings."""
    if row.pruned is None or row.n_removed is None:
        return 0
    gone = round(row.n_removed * sum(map(decoder.layer_parameters, range(decoder.n_layers))))
    return max(0, row.pruned - (row.dense - gone // decoder.n_layers))


def check_fits(estimate: Estimate, out: Path, device_memory: int | None) -> list[str]:
    """What cannot fit on this machine, in words; empty if all can.

    Args:
        estimate: From :func:`plan_run`.
        out: The run's folder, on whose disk the artefacts go.
        device_memory: Bytes of the device, or None if unknown.
    """
    problems = []
    if device_memory is not None and estimate.memory_bytes > device_memory:
        problems.append(
            f"needs about {estimate.memory_bytes / 2**30:.1f} GiB of device memory, and there are "
            f"{device_memory / 2**30:.1f} GiB; take --dtype bfloat16, fewer methods at once, or a "
            "larger device"
        )
    folder = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if estimate.disk_bytes > free:
        problems.append(
            f"needs about {estimate.disk_bytes / 2**30:.1f} GiB of disk at {folder}, and "
            f"{free / 2**30:.1f} GiB are free"
        )
    return problems
