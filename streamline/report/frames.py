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

from streamline.results.averages import collapsed_tasks
from streamline.results.record import Cost, Record

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CELL",
    "cost_frame",
    "results_frame",
    "seeds_frame",
    "sort_records",
    "stability_frame",
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
    """The values of every record.

    Args:
        records: Of any models and states.

    Returns:
        The cell's five names; status, reason, removed_fraction, flag; ``TASK METRIC`` and
        ``TASK METRIC stderr`` for each task; accuracy, relative_accuracy, stability; and
        ``perplexity TEXT`` for each text.
    """
    rows = []
    for record in sort_records(records):
        row = {
            **_cell(record),
            "status": record.status,
            "reason": record.reason,
            "removed_fraction": record.parameters.removed_fraction,
            "flag": record.notes.get("flag"),
        }
        for task, result in collapsed_tasks(record).items():
            row[f"{task} {result.metric}"] = result.value
            row[f"{task} {result.metric} stderr"] = result.stderr
        for name in _MEASURES:
            row[name] = getattr(record.summary, name)
        for text, value in record.summary.perplexity.items():
            row[f"perplexity {text}"] = value
        rows.append(row)
    return _frame(rows, last=(*_MEASURES, "perplexity "))


def stability_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Stability, agreement and the four counts of each task, one row per record and task.

    Args:
        records: Those that are not ``ok`` are left out.

    Returns:
        The cell's five names; task, metric, n, value, stability, stability_stderr, agreement,
        both_right, lost, gained, both_wrong.
    """
    rows = []
    for record in sort_records(records):
        if record.status != "ok":
            continue
        for task, result in collapsed_tasks(record).items():
            counts = result.extra("counts") or {}
            rows.append(
                {
                    **_cell(record),
                    "task": task,
                    "metric": result.metric,
                    "n": result.n,
                    "value": result.value,
                    "stability": result.stability,
                    "stability_stderr": result.extra("stability_stderr"),
                    "agreement": result.extra("agreement"),
                    **{
                        name: counts.get(name)
                        for name in ("both_right", "lost", "gained", "both_wrong")
                    },
                }
            )
    return _frame(rows)


def cost_frame(records: Sequence[Record]) -> pd.DataFrame:
    """What each record cost, and its parameters.

    Returns:
        The cell's five names; status; dense and pruned parameter counts; all that
        :class:`streamline.results.record.Cost` holds.
    """
    rows = [
        {
            **_cell(record),
            "status": record.status,
            "dense_parameters": record.parameters.dense,
            "pruned_parameters": record.parameters.pruned,
            **{name: getattr(record.cost, name) for name in Cost.model_fields},
        }
        for record in sort_records(records)
    ]
    return _frame(rows)


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
            values = [getattr(record.summary, name) for record in group]
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
    """0 for a column that stays, else its index among the last ones; ``x `` is a prefix."""
    for index, start in enumerate(last, start=1):
        if name == start or (start.endswith(" ") and name.startswith(start)):
            return index
    return 0
