"""The tables of a run, as text cells ready for any format.

A ``Table`` is made here from records and rendered by ``results.render``. Shares are in percent, a
figure that was not measured is ``-``, a cell that failed or was skipped is a row of its own whose
reason stands in the notes, and every task's heading names its metric.

Example::

    for table in run_tables(load("out")):
        terminal(table)                    # streamline.report.render
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from streamline.report.frames import collapsed_tasks, protocol_of, sort_records
from streamline.results.metrics import METRICS
from streamline.results.record import Record, Summary, TaskResult

__all__ = [
    "MISSING",
    "Table",
    "cost_table",
    "figure",
    "percent",
    "protocol_notes",
    "results_table",
    "run_tables",
    "seeds_table",
    "stability_table",
]

MISSING = "-"
_PROTOCOLS = {
    "lm-eval": "Scored as by lm-eval",
    "opencompass-ppl": "Scored as by OpenCompass, mean NLL of the whole text",
    "gen": "Generated",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells with headings.

    Attributes:
        name: For file names, such as ``results-opt-1.3b``.
        title: One line above the table.
        columns: Headings; a newline separates a task from its metric.
        rows: As many cells each as there are columns.
        keys: How many columns name the row; a block of a wide table repeats them.
        words: How many leading columns hold words and stand at the left.
        sections: Places of the rows that begin a group.
        notes: Lines below the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1
    words: int = 1
    sections: frozenset[int] = frozenset()
    notes: tuple[str, ...] = field(default=())


def run_tables(records: Sequence[Record], stderr: bool = True) -> list[Table]:
    """All tables of a run: results, stability and cost of each model, then seeds if several.

    Args:
        records: Of any models and states.
        stderr: Whether cells show their standard error.

    Returns:
        The tables; those that would hold no figure are left out.
    """
    tables = []
    for model in dict.fromkeys(record.model for record in records):
        mine = [record for record in records if record.model == model]
        tables.append(results_table(mine, stderr=stderr))
        if any(task.stability is not None for record in mine for task in record.tasks.values()):
            tables.append(stability_table(mine, stderr=stderr))
        tables.append(cost_table(mine))
        seeds = seeds_table(mine)
        if seeds.rows:
            tables.append(seeds)
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
    heads, names = _names(ordered)
    rows, notes = [], [*_state_notes(ordered), *protocol_notes(ordered)]
    for record, name in zip(ordered, names, strict=True):
        results = {(task, item.metric): item for task, item in collapsed_tasks(record).items()}
        rows.append(
            (
                *name,
                _removed(record),
                percent(record.summary.accuracy),
                percent(record.summary.relative_accuracy),
                percent(record.summary.stability),
                *(figure(record.summary.perplexity.get(text)) for text in texts),
                *(_task_cell(results.get(key), stderr) for key in tasks),
            )
        )
    return Table(
        name=f"results-{_slug(records)}",
        title=f"{_model(records)}: accuracy in percent, by task and metric",
        columns=(
            *heads,
            "removed\n%",
            "average",
            "relative\n%",
            "stability\n%",
            *(f"perplexity\n{text}" for text in texts),
            *_task_heads(tasks),
        ),
        rows=tuple(rows),
        keys=len(heads),
        sections=_sections(ordered),
        notes=tuple(notes),
    )


def stability_table(records: Sequence[Record], stderr: bool = True) -> Table:
    """Stability by task with the answers lost and gained, of one model's finished cells.

    Beside the average stands the average agreement: the same share without the weights.

    Args:
        records: Of one model.
        stderr: Whether cells show their standard error.

    Returns:
        The table.
    """
    ordered = [record for record in sort_records(records) if record.status == "ok"]
    tasks = [
        key
        for key in _task_columns(ordered)
        if any(
            item.stability is not None
            for record in ordered
            for task, item in collapsed_tasks(record).items()
            if (task, item.metric) == key
        )
    ]
    heads, names = _names(ordered)
    rows = []
    for record, name in zip(ordered, names, strict=True):
        results = {(task, item.metric): item for task, item in collapsed_tasks(record).items()}
        cells = tuple(_stability_cell(results.get(key), stderr) for key in tasks)
        averages = (record.summary.stability, _extra(record.summary, "agreement"))
        rows.append((*name, *map(percent, averages), *cells))
    return Table(
        name=f"stability-{_slug(records)}",
        title=f"{_model(records)}: stability in percent (answers lost, gained against dense)",
        columns=(
            *heads,
            "average",
            "agreement",
            *_task_heads(tasks),
        ),
        rows=tuple(rows),
        keys=len(heads),
        sections=_sections(ordered),
        notes=tuple(protocol_notes(ordered)),
    )


def cost_table(records: Sequence[Record]) -> Table:
    """Parameters, time, memory and training tokens of one model's cells."""
    ordered = sort_records(records)
    heads, names = _names(ordered)
    rows = []
    for record, name in zip(ordered, names, strict=True):
        memory = record.cost.peak_memory_bytes
        pruned = record.parameters.pruned
        rows.append(
            (
                *name,
                MISSING if pruned is None else f"{pruned / 1e6:,.1f}",
                _seconds(record.cost.calibrate_s),
                _seconds(record.cost.train_s),
                _seconds(record.cost.eval_s),
                MISSING if memory is None else f"{memory / 2**30:.2f}",
                MISSING if record.cost.train_tokens is None else f"{record.cost.train_tokens:,}",
            )
        )
    return Table(
        name=f"cost-{_slug(records)}",
        title=f"{_model(records)}: cost of each cell",
        columns=(
            *heads,
            "parameters\nmillion",
            "calibrate\ns",
            "train\ns",
            "evaluate\ns",
            "peak memory\nGiB",
            "training\ntokens",
        ),
        rows=tuple(rows),
        keys=len(heads),
        sections=_sections(ordered),
        notes=(
            "Cells are trained and evaluated together: their seconds are equal shares of that "
            "work, and memory is the peak of all of it, so neither compares methods.",
        ),
    )


def seeds_table(records: Sequence[Record]) -> Table:
    """Mean and sample standard deviation over seeds of one model's cells run more than once."""
    from streamline.report.frames import seeds_frame

    frame = seeds_frame(records)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in frame.to_dict("records"):
        name = row["method"] + ("" if row["recovery"] == "none" else f" +{row['recovery']}")
        cell = rows.setdefault((name, f"{row['sparsity']:g}", str(row["seeds"])), {})
        cell[row["measure"]] = f"{100 * row['mean']:.1f} ±{100 * row['std']:.1f}"
    measures = ("accuracy", "relative_accuracy", "stability")
    return Table(
        name=f"seeds-{_slug(records)}",
        title=f"{_model(records)}: mean ± sample standard deviation over seeds, in percent",
        columns=(
            "method",
            "asked",
            "seeds",
            "average\naccuracy",
            "relative\naccuracy",
            "stability",
        ),
        rows=tuple(
            (*key, *(cell.get(measure, MISSING) for measure in measures))
            for key, cell in rows.items()
        ),
        keys=3,
    )


def percent(value: float | None, stderr: float | None = None) -> str:
    """A share in percent to one decimal, with its standard error if given."""
    if value is None:
        return MISSING
    error = "" if stderr is None else f" ±{100 * stderr:.1f}"
    return f"{100 * value:.1f}{error}"


def figure(value: float | None, stderr: float | None = None) -> str:
    """A figure as it is, to three or more significant digits."""
    if value is None:
        return MISSING
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    error = "" if stderr is None else f" ±{stderr:,.{digits}f}"
    return f"{value:,.{digits}f}{error}"


def _extra(summary: Summary, name: str) -> float | None:
    """A further figure of a record's summary, or None if it was not measured."""
    value = (summary.model_extra or {}).get(name)
    return None if value is None else float(value)


def _task_cell(result: TaskResult | None, stderr: bool) -> str:
    if result is None:
        return MISSING
    row = METRICS.get(result.metric)
    show = percent if row is not None and row.share else figure
    return show(result.value, result.stderr if stderr else None)


def _stability_cell(result: TaskResult | None, stderr: bool) -> str:
    if result is None or result.stability is None:
        return MISSING
    extra = result.model_extra or {}
    counts = extra.get("counts") or {}
    flips = (
        f" (-{counts['lost']}, +{counts['gained']})" if {"lost", "gained"} <= set(counts) else ""
    )
    return percent(result.stability, extra.get("stability_stderr") if stderr else None) + flips


def _removed(record: Record) -> str:
    if record.status != "ok":
        return record.status
    mark = " !" if record.notes.get("flag") else ""
    return percent(record.parameters.removed_fraction) + mark


def _state_notes(records: Sequence[Record]) -> list[str]:
    """Why cells were not done, and where the achieved sparsity lies far from the asked one."""
    said: dict[str, list[str]] = {}
    for record in records:
        name = f"{_method(record)} at {record.sparsity:g}"
        name += f", seed {record.seed}" if record.seed else ""
        flag = record.notes.get("flag")
        if record.status != "ok":
            text = f"{record.status}: {record.reason or 'no reason recorded'}"
        elif flag:
            far = "more than half a layer's share from what was asked"
            text = f"! {flag if isinstance(flag, str) else far}"
        elif record.reason:
            text = record.reason
        else:
            continue
        said.setdefault(text, []).append(name)
    return [f"{'; '.join(names)}: {text}" for text, names in said.items()]


def _names(records: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and cells that name the rows; the seed only where there are several."""
    seeds = len({record.seed for record in records}) > 1
    heads = ("method", "asked", *(("seed",) if seeds else ()))
    return heads, [
        (_method(record), f"{record.sparsity:g}", *((str(record.seed),) if seeds else ()))
        for record in records
    ]


def _method(record: Record) -> str:
    return record.method + ("" if record.recovery == "none" else f" +{record.recovery}")


def _task_columns(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(task, metric) in the order of first appearance."""
    return list(
        dict.fromkeys(
            (task, result.metric)
            for record in records
            for task, result in collapsed_tasks(record).items()
        )
    )


def _sections(records: Sequence[Record]) -> frozenset[int]:
    return frozenset(
        place
        for place in range(1, len(records))
        if records[place].sparsity != records[place - 1].sparsity
    )


def _task_heads(tasks: Sequence[tuple[str, str]]) -> list[str]:
    """A task's name and metric; the prefix of this package's tasks goes where it is not needed."""
    names = {task for task, _ in tasks}
    return [f"{_short(task, names)}\n{metric}" for task, metric in tasks]


def _short(task: str, names: Collection[str]) -> str:
    short = task.removeprefix("streamline_")
    return task if short in names else short


def protocol_notes(records: Sequence[Record]) -> list[str]:
    """How the tasks were scored, and that nothing is averaged over several ways."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for task, result in collapsed_tasks(record).items():
            found.setdefault(protocol_of(task, result) or "", {})[task] = None
    names = {task for tasks in found.values() for task in tasks}
    notes = [
        f"{_PROTOCOLS.get(protocol, protocol)}: {', '.join(_short(task, names) for task in tasks)}."
        for protocol, tasks in found.items()
        if protocol
    ]
    if len(found) > 1:
        notes.append("Tasks scored in different ways have no average over all of them.")
    return notes


def _model(records: Sequence[Record]) -> str:
    return records[0].model if records else "no model"


def _slug(records: Sequence[Record]) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in _model(records))


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f}"
