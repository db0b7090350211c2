"""Records as data frames of plain numbers: what the tables show and the CSV files hold.

One row per record, nothing rounded, a missing number is NaN. A task's column is named after the
task *and* its metric, so that values under two metrics never share a column; the subjects of MMLU
and of CMMLU become one column each, their unweighted mean.

Example::

    frame = results_frame(load("out"))
    frame[["method", "sparsity", "piqa acc", "accuracy", "stability"]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamline.report.findings import uncertainty
from streamline.results.averages import averages_of, collapsed_tasks
from streamline.results.blocks.efficiency import Efficiency, Quartiles
from streamline.results.record import Record, TaskResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CELL",
    "results_frame",
    "seeds_frame",
    "sort_records",
]

CELL = ("model", "method", "recovery", "sparsity", "seed")
_MEASURES = ("accuracy", "relative_accuracy", "stability")


def sort_records(records: Sequence[Record]) -> list[Record]:
    """Records by model, sparsity, then in the order in which methods and recoveries appear."""
    models = _first_indices(record.model for record in records)
    methods = _first_indices(record.method for record in records)
    recoveries = _first_indices(record.recovery for record in records)
    return sorted(
        records,
        key=lambda record: (
            models[record.model],
            record.sparsity,
            methods[record.method],
            recoveries[record.recovery],
            record.seed,
        ),
    )


def results_frame(records: Sequence[Record]) -> pd.DataFrame:
    """All numbers of every record, one row a cell.

    Args:
        records: Of any models and states.

    Returns:
        The cell's five names; status, reason, flag; parameters; for each task ``TASK METRIC``, its
        ``stderr``, ``n``, ``stability`` with its error, ``agreement`` and the answers ``lost`` and
        ``gained``; the averages and their errors; ``perplexity TEXT``; ``efficiency``; ``cost``.
    """
    ordered = sort_records(records)
    dense = {(one.model, one.seed): one for one in ordered if one.method == "dense"}
    any_dense = {model: one for (model, _), one in reversed(dense.items())}
    rows = []
    for record in ordered:
        row: dict[str, Any] = {
            **_cell(record),
            "status": record.status,
            "reason": record.reason,
            "flag": str(record.notes["flag"]) if record.notes.get("flag") else None,
            "dense_parameters": record.parameters.dense,
            "pruned_parameters": record.parameters.pruned,
            "removed_fraction": record.parameters.removed_fraction,
        }
        for task, result in collapsed_tasks(record).items():
            row |= _task(f"{task} {result.metric}", result)
        base = dense.get((record.model, record.seed), any_dense.get(record.model))
        found = {
            "accuracy": uncertainty.accuracy(record),
            "relative_accuracy": uncertainty.relative(record, base),
            "stability": uncertainty.stability(record),
            **{
                f"perplexity {text}": uncertainty.perplexity(record, text)
                for text in record.summary.perplexity
            },
        }
        for name, estimate in found.items():
            row[name] = None if estimate is None else estimate.value
            row[f"{name} stderr"] = None if estimate is None else estimate.stderr
        if record.efficiency is not None:
            row |= _efficiency(record.efficiency)
        known = record.cost.model_dump(mode="json")
        row |= {f"cost {name}": value for name, value in known.items() if _plain(value)}
        rows.append(row)
    return _frame(rows, last=(*_MEASURES, "perplexity ", "efficiency ", "cost "))


def _task(name: str, result: TaskResult) -> dict[str, Any]:
    counts = result.extra("counts") or {}
    return {
        name: result.value,
        f"{name} stderr": result.stderr,
        f"{name} n": result.n,
        f"{name} stability": result.stability,
        f"{name} stability stderr": result.extra("stability_stderr"),
        f"{name} agreement": result.extra("agreement"),
        f"{name} lost": counts.get("lost"),
        f"{name} gained": counts.get("gained"),
    }


def _efficiency(found: Efficiency) -> dict[str, Any]:
    """Its plain values, and of what was measured several times the medians."""
    row: dict[str, Any] = {}
    for name, value in found:
        if isinstance(value, Quartiles):
            row[f"efficiency {name}"] = value.median
        elif _plain(value):
            row[f"efficiency {name}"] = value
    for phase in ("prefill", "decode"):
        for speed in getattr(found, phase):
            for name in ("tokens_per_second", "dense_tokens_per_second", "ratio"):
                measured = getattr(speed, name)
                key = f"efficiency {phase} {name} batch {speed.batch}"
                row[key] = None if measured is None else measured.median
    return row


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def seeds_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Mean and spread over seeds, one row per cell without its seed and measure.

    Args:
        records: Cells that were run with one seed only, or not finished, are left out.

    Returns:
        model, method, recovery, sparsity, measure, seeds (their number), mean, std (sample),
        min, max.
    """
    import numpy as np

    cells: dict[tuple[Any, ...], list[Record]] = {}
    for record in sort_records(records):
        if record.status == "ok":
            cells.setdefault(tuple(_cell(record).values())[:-1], []).append(record)
    rows = []
    for cell, group in cells.items():
        for name in _MEASURES:
            values = [getattr(averages_of(record), name) for record in group]
            if len(values) < 2 or None in values:
                continue
            rows.append(
                {
                    **dict(zip(CELL[:-1], cell, strict=True)),
                    "measure": name,
                    "seeds": len(values),
                    "mean": float(np.mean(values)),
                    "std": float(np.std(values, ddof=1)),
                    "min": min(values),
                    "max": max(values),
                }
            )
    return _frame(rows)


def _cell(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in CELL}


def _first_indices(names: Any) -> dict[str, int]:
    """Name -> index of its first appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def _frame(rows: list[dict[str, Any]], last: tuple[str, ...] = ()) -> pd.DataFrame:
    """A frame whose columns keep their first appearance, except those that belong last."""
    import pandas as pd

    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=lambda name: _rank(name, last))
    return pd.DataFrame(rows, columns=columns)


def _rank(name: str, last: tuple[str, ...]) -> int:
    """0 for a column that stays, else its index among the last ones, which it begins with."""
    for index, start in enumerate(last, start=1):
        if f"{name} ".startswith(f"{start.rstrip()} "):
            return index
    return 0
