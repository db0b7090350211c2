"""The main table of a run and what is said below it, as text cells ready for any format.

A ``Table`` is made here from rows and rendered by ``report.render`` and ``report.latex``.
Fractions are in percent, a value that was not measured is ``-``, a cell that failed or was skipped
is a row of its own whose reason is in the notes, and every task's heading names its metric.

Example::

    terminal(results_table(rows(load("out"), {})))          # streamline.report.render
"""

from __future__ import annotations

from collections.abc import Sequence

from streamline.report.findings.rows import Column, Row, task_columns
from streamline.report.findings.scoring import protocol_notes, short_name
from streamline.report.findings.uncertainty import Estimate
from streamline.report.frames import sort_records
from streamline.report.table import MISSING, Table, fixed, number, percent
from streamline.results.averages import averages_of, collapsed_tasks
from streamline.results.metrics import METRICS, is_fraction
from streamline.results.record import Record, TaskResult, method_label
from streamline.results.stability import KINDS

__all__ = ["failures_table", "flips_table", "results_table", "stability_table"]

_SPEEDS = (("decode", "decode\n× dense"), ("prefill", "prefill\n× dense"))


def results_table(rows: Sequence[Row]) -> Table:
    """Averages with their errors, groups, perplexity, speed and, folded, accuracy by task.

    Args:
        rows: Of one model or of several, whose names then stand in the table.

    Returns:
        The table, one row for each row given; seeds are together.
    """
    records = [record for row in rows for record in row.records]
    tasks = task_columns(records)
    texts = list(dict.fromkeys(text for row in rows for text in row.perplexity))
    seeds = any(len(row.records) > 1 for row in rows)
    letters = any(row.letters for row in rows)
    speeds = [
        (phase, head)
        for phase, head in _SPEEDS
        if any(_speed(row, phase) != MISSING for row in rows if not row.dense)
    ]
    models = list(dict.fromkeys(row.model for row in rows))
    heads = {
        "method": "method",
        **({"model": "model"} if len(models) > 1 else {}),
        "target": "target",
        **({"seeds": "seeds"} if seeds else {}),
        "accuracy": "average\n%",
        "relative": "of dense\n%",
        **({"group": "group"} if letters else {}),
        "stability": "stability\n%",
        **{f"perplexity {text}": f"perplexity\n{text}" for text in texts},
        **dict(speeds),
        "removed": "removed\n%",
        **{f"task {number}": head for number, head in enumerate(_heads(tasks))},
    }
    cells: list[dict[str, str]] = []
    for row in rows:
        cells.append(
            {
                "method": row.method,
                "model": row.model,
                "target": f"{row.sparsity:g}",
                "seeds": str(len(row.records)) if row.done else MISSING,
                "removed": _removed(row),
                "group": row.letters or MISSING,
                "accuracy": _percent(row.accuracy) if row.done else row.records[0].status,
                "relative": _percent(row.relative),
                "stability": _percent(row.stability),
                **{f"perplexity {text}": _perplexity(row, text) for text in texts},
                **{phase: _speed(row, phase) for phase, _ in speeds},
                **{
                    f"task {index}": _value(row.tasks.get(column), column[1])
                    for index, column in enumerate(tasks)
                },
            }
        )
    names = list(heads)
    strong = frozenset(
        (index, place)
        for index, row in enumerate(rows)
        for place, name in enumerate(names)
        if name in row.leads or (name == "relative" and "accuracy" in row.leads)
    )
    shown = models[0] if len(models) == 1 else "all models"
    return Table(
        name=f"results-{shown}",
        title=f"{shown}: results",
        columns=tuple(heads.values()),
        rows=tuple(tuple(row[name] for name in names) for row in cells),
        keys=names.index("accuracy"),
        words=names.index("target"),
        sections=_groups(rows),
        strong=strong,
        folded=frozenset(
            names.index(f"task {place}") for place, (_, m) in enumerate(tasks) if is_fraction(m)
        ),
        spare=tuple(names.index(name) for name in ("prefill", "removed", "seeds") if name in names),
        notes=(
            *_meanings(bool(strong), letters, bool(speeds)),
            *_state_notes(records),
            *protocol_notes(records),
        ),
    )


def stability_table(rows: Sequence[Row]) -> Table | None:
    """Stability by task with the answers lost and gained, for each cell's first seed.

    Beside the average stands the average agreement: the same fraction without the weights.

    Args:
        rows: Of one model.

    Returns:
        The table; None if no stability was measured.
    """
    done = [row for row in rows if row.done]
    tasks = [
        column
        for column in task_columns([row.records[0] for row in done])
        if any(_result(row, column, "stability") is not None for row in done)
    ]
    if not tasks:
        return None
    cells = []
    for row in done:
        averages = averages_of(row.records[0])
        own = percent(averages.stability), percent(averages.extra("agreement"))
        each = (_stability_cell(_task(row, column)) for column in tasks)
        cells.append((row.method, f"{row.sparsity:g}", *own, *each))
    return Table(
        name=f"stability-{rows[0].model}",
        title=f"{rows[0].model}: stability in percent (answers lost, gained against dense)",
        columns=("method", "target", "average", "agreement", *_heads(tasks)),
        rows=tuple(cells),
        keys=2,
        sections=_groups(done),
    )


def flips_table(rows: Sequence[Row]) -> Table | None:
    """What became of the answers, and how sure the dense model was of each kind.

    Args:
        rows: Of one model; of several seeds the first is shown.

    Returns:
        The table; None if no record has the stds.
    """
    cells = []
    for row in (row for row in rows if row.done and not row.dense):
        for task, result in collapsed_tasks(row.records[0]).items():
            counts, std = result.extra("counts"), result.extra("option_std")
            if isinstance(counts, dict) and isinstance(std, dict):
                each = (f"{counts.get(kind)} ({fixed(std.get(kind), '.3g')})" for kind in KINDS)
                cells.append((row.method, f"{row.sparsity:g}", task, *each))
    if not cells:
        return None
    return Table(
        name=f"flips-{rows[0].model}",
        title=f"{rows[0].model}: answers by what became of them (std of the options' NLLs before)",
        columns=("method", "target", "task", *(kind.replace("_", " ") for kind in KINDS)),
        rows=tuple(cells),
        keys=3,
        words=3,
        notes=(
            "In brackets the mean std of the dense model's NLLs of the options. Later versions "
            "of arXiv:2403.19135 (Table 1, Llama2-7B without nine layers) say that it is lower for "
            "answers lost or gained; of their numbers an order of magnitude is known, thousandths.",
        ),
    )


def failures_table(records: Sequence[Record]) -> Table | None:
    """The cells that failed or were skipped, and why; None if all are done."""
    lost = [record for record in sort_records(records) if record.status != "ok"]
    if not lost:
        return None
    return Table(
        name="failures",
        title="Failed and skipped cells",
        columns=("method", "model", "target", "seed", "state", "reason"),
        rows=tuple(
            (
                method_label(record.method, record.recovery),
                record.model,
                f"{record.sparsity:g}",
                str(record.seed),
                record.status,
                record.reason or "no reason recorded",
            )
            for record in lost
        ),
        keys=4,
        words=6,
    )


def _meanings(strong: bool, letters: bool, speeds: bool) -> list[str]:
    notes = ["± is one standard error."]
    if strong:
        paired = "no paired test tells from it; perplexities without losses by window: their errors"
        ties = paired if letters else "lies within the errors of it"
        notes.append(f"Bold: the best at each target and what {ties}.")
    if speeds:
        notes.append("Speeds are medians at batch 1, measured beside the dense model.")
    return notes


def _groups(rows: Sequence[Row]) -> frozenset[int]:
    """Places where a new sparsity begins."""
    kinds = [(row.model, row.sparsity) for row in rows]
    return frozenset(i for i in range(1, len(rows)) if kinds[i] != kinds[i - 1])


def _percent(value: Estimate | None) -> str:
    return MISSING if value is None else percent(value.value, value.stderr)


def _number(value: Estimate | None) -> str:
    return MISSING if value is None else number(value.value, value.stderr)


def _value(value: Estimate | None, metric: str) -> str:
    """A task's value under its metric: fractions in percent, others as they are."""
    known = METRICS.get(metric)
    return _percent(value) if known is not None and known.is_fraction else _number(value)


def _speed(row: Row, phase: str) -> str:
    """How many times as fast as the dense model, of the first seed."""
    found = row.records[0].efficiency
    speed = None if found is None else found.speed("decode" if phase == "decode" else "prefill", 1)
    ratio = None if speed is None else speed.ratio
    return MISSING if ratio is None else f"{ratio.median:.2f}"


def _removed(row: Row) -> str:
    flagged = any(record.notes.get("flag") for record in row.records)
    return percent(row.removed) + (" !" if flagged else "")


def _perplexity(row: Row, text: str) -> str:
    """A perplexity, marked where it is worse than that of the same layers dropped."""
    worse = any(
        record.notes.get("worse") and record.notes["dropped"]["text"] == text
        for record in row.records
    )
    return _number(row.perplexity.get(text)) + (" !" if worse else "")


def _task(row: Row, column: Column) -> TaskResult | None:
    result = collapsed_tasks(row.records[0]).get(column[0])
    return result if result is not None and result.metric == column[1] else None


def _result(row: Row, column: Column, name: str) -> float | None:
    result = _task(row, column)
    value: float | None = None if result is None else getattr(result, name)
    return value


def _stability_cell(result: TaskResult | None) -> str:
    if result is None or result.stability is None:
        return MISSING
    counts = result.extra("counts") or {}
    flips = f" (-{counts['lost']}, +{counts['gained']})" if "lost" in counts else ""
    return percent(result.stability, result.extra("stability_stderr")) + flips


def _state_notes(records: Sequence[Record]) -> list[str]:
    """Why cells were not done, and what of them is marked: far from the target, worse than none."""
    notes: dict[str, list[str]] = {}
    for record in records:
        name = f"{method_label(record.method, record.recovery)} at {record.sparsity:g}"
        name += f", seed {record.seed}" if record.seed else ""
        flag = record.notes.get("flag")
        for task, why in record.notes.get("missing", {}).items():
            notes.setdefault(f"{task} is missing: {why}", []).append(name)
        if record.notes.get("worse"):
            notes.setdefault(f"! {record.notes['worse']}", []).append(name)
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


def _heads(tasks: Sequence[Column]) -> list[str]:
    """A task's name and metric; the prefix of this package's tasks goes where it is not needed."""
    names = {task for task, _ in tasks}
    return [f"{short_name(task, names)}\n{metric}" for task, metric in tasks]
