"""A run's cells as the rows of its main table: seeds together, with errors, letters and ties.

Example::

    for row in rows(records, comparisons):
        row.method, row.sparsity, row.relative.value, row.letters, row.leads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from streamline.report.findings import uncertainty
from streamline.report.findings.chance import Comparisons
from streamline.report.findings.uncertainty import Estimate
from streamline.report.frames import sort_records
from streamline.results.averages import collapsed_tasks, mean
from streamline.results.record import Record, method_label
from streamline.results.select import dense_of

__all__ = ["Row", "rows", "task_columns"]

Column = tuple[str, str]
"""A task and its metric."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cells of one model, method, recovery and sparsity.

    Attributes:
        records: One for each seed that is done, or all of them where none is.
        letters: Cells at one sparsity that share a letter cannot be told apart; empty where the
            answers were not compared.
        apart: For each measure that was paired, whether it is told apart from the best.
        leads: The measures under which it is the best at its sparsity, or ties with it:
            ``accuracy``, ``stability``, ``perplexity TEXT``.
    """

    model: str
    method: str
    sparsity: float
    records: tuple[Record, ...]
    removed: float | None = None
    accuracy: Estimate | None = None
    relative: Estimate | None = None
    stability: Estimate | None = None
    perplexity: Mapping[str, Estimate] = field(default_factory=dict)
    tasks: Mapping[Column, Estimate] = field(default_factory=dict)
    letters: str = ""
    apart: Mapping[str, bool] = field(default_factory=dict)
    leads: frozenset[str] = frozenset()

    @property
    def done(self) -> bool:
        """Whether it has results."""
        return self.records[0].status == "ok"

    @property
    def dense(self) -> bool:
        """Whether it is the dense model."""
        return self.records[0].method == "dense"


def rows(records: Sequence[Record], comparisons: Comparisons) -> list[Row]:
    """The rows of some records, dense first at each model.

    Args:
        records: Of any models and states.
        comparisons: From ``findings.chance.paired``.
    """
    ordered = sort_records(records)
    groups: dict[tuple[str, str, float], list[Record]] = {}
    for record in ordered:
        name = method_label(record.method, record.recovery)
        groups.setdefault((record.model, name, record.sparsity), []).append(record)
    dense = [one for one in ordered if one.method == "dense"]
    found = [
        _row(model, method, sparsity, group, dense)
        for (model, method, sparsity), group in groups.items()
    ]
    found = [_compared(row, comparisons) for row in found]
    return [replace(row, leads=_leads(row, found)) for row in found]


def task_columns(records: Sequence[Record]) -> list[Column]:
    """(task, metric) in the order of first appearance."""
    return list(
        dict.fromkeys(
            (task, result.metric)
            for record in records
            for task, result in collapsed_tasks(record).items()
        )
    )


def _row(
    model: str,
    method: str,
    sparsity: float,
    group: Sequence[Record],
    dense: Sequence[Record],
) -> Row:
    done = [record for record in group if record.status == "ok"]
    if not done:
        return Row(model=model, method=method, sparsity=sparsity, records=tuple(group))

    def of(record: Record) -> Estimate | None:
        return uncertainty.relative(record, dense_of(record, dense))

    texts = dict.fromkeys(text for record in done for text in record.summary.perplexity)
    read = {text: _together(done, partial(uncertainty.perplexity, text=text)) for text in texts}
    tasks = {
        column: _together(done, partial(_task, column=column)) for column in task_columns(done)
    }
    return Row(
        model=model,
        method=method,
        sparsity=sparsity,
        records=tuple(done),
        removed=mean([record.parameters.removed_fraction for record in done]),
        accuracy=_together(done, uncertainty.accuracy),
        relative=_together(done, of),
        stability=_together(done, uncertainty.stability),
        perplexity={text: value for text, value in read.items() if value is not None},
        tasks={column: value for column, value in tasks.items() if value is not None},
    )


def _read(row: Row, text: str) -> Estimate | None:
    return row.perplexity.get(text)


def _task(record: Record, column: Column) -> Estimate | None:
    result = collapsed_tasks(record).get(column[0])
    if result is None or result.metric != column[1] or result.value is None:
        return None
    return Estimate(result.value, result.stderr)


def _together(
    records: Sequence[Record], of: Callable[[Record], Estimate | None]
) -> Estimate | None:
    """Over seeds; None where one of them was not measured."""
    found = [one for one in map(of, records) if one is not None]
    return uncertainty.over_seeds(found) if len(found) == len(records) else None


def _compared(row: Row, comparisons: Comparisons) -> Row:
    result = comparisons.get((row.model, row.sparsity))
    if result is None or row.dense:
        return row
    letters = result.letters.get(row.method, "")
    apart = {
        measure: found.apart(row.method)
        for measure, found in result.paired.items()
        if row.method in found.values
    }
    return replace(row, letters=letters, apart=apart)


def _tie(row: Row, best: Row, measure: str, own: Estimate, top: Estimate) -> bool:
    """Whether a row cannot be told apart from the best one, paired where that is known."""
    if measure == "accuracy" and row.letters and best.letters:
        return bool(set(row.letters) & set(best.letters))
    if measure in row.apart and measure in best.apart:
        return not row.apart[measure]
    return uncertainty.same(own, top)


def _leads(row: Row, all_rows: Sequence[Row]) -> frozenset[str]:
    """Under which measures a row is the best of its model and sparsity or ties with the best."""
    rivals = [
        other
        for other in all_rows
        if (other.model, other.sparsity) == (row.model, row.sparsity) and not other.dense
    ]
    if row.dense or len(rivals) < 2:
        return frozenset()
    found = set()
    measures: dict[str, Callable[[Row], Estimate | None]] = {
        "accuracy": lambda one: one.accuracy,
        "stability": lambda one: one.stability,
        **{f"perplexity {text}": partial(_read, text=text) for text in row.perplexity},
    }
    for name, of in measures.items():
        there = [(value, other) for other in rivals if (value := of(other)) is not None]
        own = of(row)
        if own is None:
            continue
        sign = -1 if name.startswith("perplexity ") else 1
        top, best = max(there, key=lambda item: sign * item[0].value)
        if own.value == top.value or _tie(row, best, name, own, top):
            found.add(name)
    return frozenset(found)
