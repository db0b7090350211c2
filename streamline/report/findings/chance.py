"""Which cells of a run cannot be told apart: paired statistics of each model at each sparsity.

Example::

    found, notes = paired(runs)
    found["opt-1.3b", 0.25].letters["shortgpt"]       # "ab"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from streamline.errors import ConfigError
from streamline.report.findings.comparison_tables import comparison_tables
from streamline.report.runs import RunFolder
from streamline.report.table import Table
from streamline.results.compare import Comparison, compare
from streamline.results.predictions import cell_predictions, comparable
from streamline.results.record import Record, label, method_label
from streamline.results.samples import samples_path

__all__ = ["chance_tables", "paired"]

Comparisons = Mapping[tuple[str, float], Comparison]


def paired(runs: Sequence[RunFolder]) -> tuple[Comparisons, dict[str, list[str]]]:
    """Compare the cells of each model and sparsity over all questions and seeds.

    Args:
        runs: Folders with records and samples.

    Returns:
        (model, sparsity) -> comparison, and by model notes on cells that could not be compared.
    """
    notes: dict[str, list[str]] = {}
    there: dict[str, list[tuple[Record, RunFolder]]] = {}
    cells = [(record, run) for run in runs for record in run.records]
    for record, run in sorted(cells, key=lambda item: item[0].seed):
        if record.status != "ok" or not record.tasks:
            continue
        if samples_path(run.path, record).is_file():
            there.setdefault(record.model, []).append((record, run))
        else:
            why = f"{label(record)}: no samples beside the record, left out"
            notes.setdefault(record.model, []).append(why)
    found: dict[tuple[str, float], Comparison] = {}
    for model, mine in there.items():
        found |= _of_model(model, mine, notes.setdefault(model, []))
    return found, notes


def _of_model(
    model: str, cells: Sequence[tuple[Record, RunFolder]], notes: list[str]
) -> dict[tuple[str, float], Comparison]:
    given = {label(one): cell_predictions(str(run.path), run.path, one) for one, run in cells}
    read, left_out = comparable(given)
    notes += [f"{name}: left out. {why}" for name, why in left_out.items()]
    there = [(one, read[label(one)].tasks) for one, _ in cells if label(one) in read]
    dense = [tasks for record, tasks in there if record.method == "dense"]
    if not dense:
        return {}
    found = {}
    for sparsity in sorted({record.sparsity for record, _ in there if record.method != "dense"}):
        models = {"dense": dense}
        for record, tasks in there:
            if record.sparsity == sparsity and record.method != "dense":
                name = method_label(record.method, record.recovery)
                models.setdefault(name, []).append(tasks)
        try:
            found[model, sparsity] = compare(models, "dense", pooled_only=True)
        except ConfigError as error:
            notes.append(f"Target {sparsity:g}: not compared. {error}")
    return found


def chance_tables(comparisons: Comparisons, model: str) -> list[Table]:
    """The groups and differences of one model, sparsity by sparsity."""
    return [
        replace(
            table,
            name=f"{table.name}-{model}-{sparsity:g}",
            title=f"Target {sparsity:g}: {table.title}",
        )
        for (name, sparsity), result in comparisons.items()
        if name == model
        for table in comparison_tables(result)
    ]
