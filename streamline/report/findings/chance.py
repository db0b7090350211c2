"""Which cells of a run cannot be told apart: paired statistics of each model at each sparsity.

Example::

    found, notes = paired(runs)
    found["opt-1.3b", 0.25].letters["shortgpt"]       # "ab"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from streamline.errors import ConfigError
from streamline.report.findings.comparison_tables import comparison_tables
from streamline.report.runs import RunFolder
from streamline.report.table import Table
from streamline.results.answers import Floats
from streamline.results.averages import averages_of, in_averages, mean
from streamline.results.compare import Comparison, Tasks, compare
from streamline.results.paired import (
    AgainstBest,
    Paired,
    against_best,
    perplexity_ratio,
    stability_difference,
)
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
    there = [
        (one, _averaged(one, read[label(one)].tasks)) for one, _ in cells if label(one) in read
    ]
    whole = all(len(tasks) == len(read[label(one)].tasks) for one, tasks in there)
    pooled = "all tasks" if whole else "the averaged tasks"
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
            result = compare(models, "dense", pooled_only=True)
            own = [one for one, _ in there if one.sparsity == sparsity and one.method != "dense"]
            found[model, sparsity] = replace(result, paired=_paired(models, own), pooled=pooled)
        except ConfigError as error:
            notes.append(f"Target {sparsity:g}: not compared. {error}")
    return found


def _averaged(record: Record, tasks: Tasks) -> Tasks:
    """The answers to those tasks that are in the averages beside which chance is told."""
    asked = in_averages(record)
    return {task: answers for task, answers in tasks.items() if asked(task)}


def _paired(
    models: Mapping[str, Sequence[Tasks]], records: Sequence[Record]
) -> dict[str, AgainstBest]:
    """The cells of one sparsity beside the best of them in stability and in each perplexity."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(method_label(one.method, one.recovery), []).append(one)
    found: dict[str, AgainstBest] = {}
    stable = _known(groups, lambda one: averages_of(one).stability)
    if len(stable) > 1:
        dense = models["dense"][0]
        found["stability"] = against_best(
            stable, lambda a, b: stability_difference(dense, models[a], models[b])
        )
    for text in dict.fromkeys(text for one in records for text in one.summary.perplexity):
        windows = {name: [_windows(one, text) for one in own] for name, own in groups.items()}
        whole = {name: own for name, own in windows.items() if all(len(row) for row in own)}
        losses = {name: float(np.mean(own)) for name, own in whole.items()}
        if len(losses) > 1:
            compared = against_best(losses, partial(_ratio, whole), lowest=True)
            raised = {name: math.exp(loss) for name, loss in compared.values.items()}
            found[f"perplexity {text}"] = replace(compared, values=raised)
    return found


def _ratio(windows: Mapping[str, Sequence[Floats]], first: str, second: str) -> Paired:
    return perplexity_ratio(windows[first], windows[second])


def _known(
    groups: Mapping[str, Sequence[Record]], of: Callable[[Record], float | None]
) -> dict[str, float]:
    """The mean over seeds of each group that has the value for all of them."""
    found = {name: mean([of(one) for one in own]) for name, own in groups.items()}
    return {name: value for name, value in found.items() if value is not None}


def _windows(record: Record, text: str) -> Floats:
    """Of each window the mean loss, [W]; [0] where that is not recorded."""
    facts = (record.summary.extra("perplexity_facts") or {}).get(text) or {}
    return np.asarray(facts.get("window_nll") or [], dtype=np.float64)


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
