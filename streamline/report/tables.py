"""The tables of a run, as text cells ready for any format.

A ``Table`` is made here from records and rendered by ``report.render``. Fractions are in percent, a
value that was not measured is ``-``, a cell that failed or was skipped is a row of its own whose
reason is in the notes, and every task's heading names its metric.

Example::

    for table in run_tables(load("out")):
        terminal(table)                    # streamline.report.render
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from streamline.report.cost_tables import cost_table, efficiency_table, seeds_table
from streamline.report.frames import sort_records
from streamline.report.table import MISSING, Table, cells_table, number, percent
from streamline.results.averages import collapsed_tasks
from streamline.results.metrics import METRICS
from streamline.results.record import Record, TaskResult, method_label

__all__ = ["protocol_notes", "results_table", "run_tables", "stability_table"]

_PROTOCOLS = {
    "lm-eval": "Scored as by lm-eval",
    "opencompass-ppl": "Scored as by OpenCompass, mean NLL of the whole text",
    "gen": "Generated",
}


def run_tables(records: Sequence[Record], stderr: bool = True) -> list[Table]:
    """All tables of a run: results, stability, efficiency, cost and seeds of each model.

    Args:
        records: Of any models and states.
        stderr: Whether cells show their standard error.

    Returns:
        The tables; those that would hold no value are left out.
    """
    tables = []
    for model in dict.fromkeys(record.model for record in records):
        mine = [record for record in records if record.model == model]
        tables.append(results_table(mine, stderr=stderr))
        if any(task.stability is not None for record in mine for task in record.tasks.values()):
            tables.append(stability_table(mine, stderr=stderr))
        others = (efficiency_table(mine), cost_table(mine), seeds_table(mine))
        tables += [table for table in others if table.rows]
    return tables


def results_table(records: Sequence[Record], stderr: bool = True) -> Table:
    """The averages, perplexity and accuracy by task of one model's cells.

    The averages come first, so that they are in sight where the table is wider than the screen.

    Args:
        records: Of one model.
        stderr: Whether cells show their standard error.

    Returns:
        The table, one row for each record.
    """
    ordered = sort_records(records)
    tasks = _task_columns(ordered)
    texts = list(dict.fromkeys(text for record in ordered for text in record.summary.perplexity))
    cells = []
    for record in ordered:
        results = _by_column(record)
        cells.append(
            (
                _removed(record),
                percent(record.summary.accuracy),
                percent(record.summary.relative_accuracy),
                percent(record.summary.stability),
                *(number(record.summary.perplexity.get(text)) for text in texts),
                *(_task_cell(results.get(key), stderr) for key in tasks),
            )
        )
    perplexity = [f"perplexity\n{text}" for text in texts]
    return cells_table(
        "results",
        "accuracy in percent, by task and metric",
        ordered,
        ["removed\n%", "average", "relative\n%", "stability\n%", *perplexity, *_heads(tasks)],
        cells,
        [*_state_notes(ordered), *protocol_notes(ordered)],
    )


def stability_table(records: Sequence[Record], stderr: bool = True) -> Table:
    """Stability by task with the answers lost and gained, of one model's finished cells.

    Beside the average stands the average agreement: the same fraction without the weights.

    Args:
        records: Of one model.
        stderr: Whether cells show their standard error.

    Returns:
        The table.
    """
    ordered = [record for record in sort_records(records) if record.status == "ok"]
    measured = {
        key
        for record in ordered
        for key, result in _by_column(record).items()
        if result.stability is not None
    }
    tasks = [key for key in _task_columns(ordered) if key in measured]
    cells = []
    for record in ordered:
        results = _by_column(record)
        averages = (record.summary.stability, record.summary.extra("agreement"))
        each = (_stability_cell(results.get(key), stderr) for key in tasks)
        cells.append((*map(percent, averages), *each))
    return cells_table(
        "stability",
        "stability in percent (answers lost, gained against dense)",
        ordered,
        ["average", "agreement", *_heads(tasks)],
        cells,
        protocol_notes(ordered),
    )


def _by_column(record: Record) -> dict[tuple[str, str], TaskResult]:
    """A record's results by task and metric."""
    return {(task, result.metric): result for task, result in collapsed_tasks(record).items()}


def _task_cell(result: TaskResult | None, stderr: bool) -> str:
    if result is None:
        return MISSING
    row = METRICS.get(result.metric)
    show = percent if row is not None and row.is_fraction else number
    return show(result.value, result.stderr if stderr else None)


def _stability_cell(result: TaskResult | None, stderr: bool) -> str:
    if result is None or result.stability is None:
        return MISSING
    counts = result.extra("counts") or {}
    flips = (
        f" (-{counts['lost']}, +{counts['gained']})" if {"lost", "gained"} <= set(counts) else ""
    )
    return percent(result.stability, result.extra("stability_stderr") if stderr else None) + flips


def _removed(record: Record) -> str:
    if record.status != "ok":
        return record.status
    mark = " !" if record.notes.get("flag") else ""
    return percent(record.parameters.removed_fraction) + mark


def _state_notes(records: Sequence[Record]) -> list[str]:
    """Why cells were not done, and where the achieved sparsity lies far from the target."""
    notes: dict[str, list[str]] = {}
    for record in records:
        name = f"{method_label(record.method, record.recovery)} at {record.sparsity:g}"
        name += f", seed {record.seed}" if record.seed else ""
        flag = record.notes.get("flag")
        for task, why in record.notes.get("missing", {}).items():
            notes.setdefault(f"{task} is missing: {why}", []).append(name)
        if record.status != "ok":
            text = f"{record.status}: {record.reason or 'no reason recorded'}"
        elif flag:
            far = "more than half a layer from the target"
            text = f"! {flag if isinstance(flag, str) else far}"
        elif record.reason:
            text = record.reason
        else:
            continue
        notes.setdefault(text, []).append(name)
    return [f"{'; '.join(names)}: {text}" for text, names in notes.items()]


def _task_columns(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(task, metric) in the order of first appearance."""
    return list(dict.fromkeys(key for record in records for key in _by_column(record)))


def _heads(tasks: Sequence[tuple[str, str]]) -> list[str]:
    """A task's name and metric; the prefix of this package's tasks goes where it is not needed."""
    names = {task for task, _ in tasks}
    return [f"{_short(task, names)}\n{metric}" for task, metric in tasks]


def _short(task: str, names: Collection[str]) -> str:
    short = task.removeprefix("streamline_")
    return task if short in names else short


def _prompts(result: TaskResult) -> str:
    """What stood around each question of a task: examples, chat template, instruction."""
    shots = result.extra("shots")
    examples = f"{shots} example{'s' if shots != 1 else ''}" if shots else None
    return ", ".join(str(text) for text in (examples, result.extra("prompts")) if text)


def protocol_notes(records: Sequence[Record]) -> list[str]:
    """How the tasks were scored, and that nothing is averaged over different ways."""
    found: dict[str, dict[str, None]] = {}
    around: dict[str, dict[str, None]] = {}
    for record in records:
        for task, result in collapsed_tasks(record).items():
            protocol = str(result.extra("protocol") or "")
            found.setdefault(protocol, {})[task] = None
            if protocol == "lm-eval" and (prompts := _prompts(result)):
                around.setdefault(prompts, {})[task] = None
    names = {task for tasks in found.values() for task in tasks}
    notes = [
        f"{_PROTOCOLS.get(protocol, protocol)}: {', '.join(_short(task, names) for task in tasks)}."
        for protocol, tasks in found.items()
        if protocol
    ]
    notes += [
        f"Asked with {prompts}: {', '.join(_short(task, names) for task in tasks)}."
        for prompts, tasks in around.items()
    ]
    if len(found) > 1:
        notes.append("Tasks scored in different ways have no average over all of them.")
    return notes
