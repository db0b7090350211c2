r"""A table as text cells, ready for any format, and how numbers are written in its cells.

Example::

    Table(name="t", title="T", columns=("method", "piqa\nacc"), rows=(("dense", percent(0.684)),))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from streamline.report.names import slug
from streamline.results.record import Record, method_label

__all__ = [
    "MISSING",
    "Table",
    "cells_table",
    "chosen_columns",
    "fixed",
    "number",
    "percent",
    "plain",
]

MISSING = "-"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells with headings.

    Attributes:
        name: For file names, such as ``results-opt-1.3b``; made one.
        given: The name as it was given.
        title: One line above the table.
        columns: Headings; a newline separates a task from its metric.
        rows: As many cells each as there are columns.
        keys: How many columns name the row; a block of a wide table repeats them.
        words: How many leading columns hold words and are aligned left.
        sections: Places of the rows that begin a group.
        strong: (row, column) of the cells that are bold.
        folded: Places of the columns that a page shows when asked to, and a terminal never.
        spare: Places of the columns that go first where lines are too short.
        notes: Lines below the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1
    words: int = 1
    sections: frozenset[int] = frozenset()
    strong: frozenset[tuple[int, int]] = frozenset()
    folded: frozenset[int] = frozenset()
    spare: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    given: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make its name one for files, and take control characters out of texts."""
        put = object.__setattr__
        put(self, "given", self.name)
        put(self, "name", slug(self.name))
        put(self, "title", plain(self.title))
        put(self, "columns", tuple("\n".join(map(plain, c.split("\n"))) for c in self.columns))
        put(self, "rows", tuple(tuple(map(plain, row)) for row in self.rows))
        put(self, "notes", tuple(map(plain, self.notes)))


def chosen_columns(table: Table, indices: Sequence[int]) -> Table:
    """The same table with some of its columns, in the order given."""
    where = {old: new for new, old in enumerate(indices)}
    return replace(
        table,
        columns=tuple(table.columns[index] for index in indices),
        rows=tuple(tuple(row[index] for index in indices) for row in table.rows),
        strong=frozenset((row, where[index]) for row, index in table.strong if index in where),
        folded=frozenset(where[index] for index in table.folded if index in where),
        spare=tuple(where[index] for index in table.spare if index in where),
    )


def plain(text: str) -> str:
    """Text on one line without control characters, which end comments or move cursors."""
    return _CONTROL.sub(" ", text)


def fixed(value: float | None, form: str) -> str:
    """A value under a format such as ``.1f``, ``-`` if it was not measured."""
    return MISSING if value is None else format(value, form)


def percent(value: float | None, stderr: float | None = None) -> str:
    """A fraction in percent to one decimal, with its standard error if given."""
    if value is None:
        return MISSING
    error = "" if stderr is None else f" ±{100 * stderr:.1f}"
    return f"{100 * value:.1f}{error}"


def number(value: float | None, stderr: float | None = None) -> str:
    """A value as it is, to three or more significant digits."""
    if value is None:
        return MISSING
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    form = f",.{digits}f" if abs(value) < 1e6 else ".1e"
    return f"{value:{form}}" + ("" if stderr is None else f" ±{stderr:{form}}")


def cells_table(
    kind: str,
    title: str,
    records: Sequence[Record],
    heads: Sequence[str],
    cells: Iterable[tuple[str, ...]],
    notes: Sequence[str],
) -> Table:
    """One row for each record, under its method, target and, where there are many, seed.

    Args:
        kind: What the table's name begins with.
        title: Stands after the model's name.
        records: Of one model, sorted.
        heads: Of the columns after those that name the cell.
        cells: Of these columns, for each record.
        notes: Below the table.
    """
    model = records[0].model if records else "no model"
    seeds = len({record.seed for record in records}) > 1
    names = ("method", "target", *(("seed",) if seeds else ()))
    rows = []
    for record, values in zip(records, cells, strict=True):
        seed = (str(record.seed),) if seeds else ()
        label = method_label(record.method, record.recovery)
        rows.append((label, f"{record.sparsity:g}", *seed, *values))
    return Table(
        name=f"{kind}-{model}",
        title=f"{model}: {title}",
        columns=(*names, *heads),
        rows=tuple(rows),
        keys=len(names),
        sections=frozenset(
            index
            for index in range(1, len(records))
            if records[index].sparsity != records[index - 1].sparsity
        ),
        notes=tuple(notes),
    )
