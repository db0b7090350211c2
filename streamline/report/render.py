"""Tables in the terminal, in Markdown and as CSV; names and reasons in them are inert.

Example::

    text = terminal(results_table(records), width=80)
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streamline.report.table import Table, chosen_columns, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "blocks",
    "code",
    "csv_text",
    "inert",
    "markdown",
    "parquet_bytes",
    "screen_width",
    "terminal",
]

_GAP = 2
_NAME = 16  # characters that a name has at least where it is broken


def blocks(table: Table, width: int = 80) -> list[Table]:
    """Cut a table into blocks of columns that fit a width; each repeats the key columns.

    Args:
        table: Any table.
        width: Characters to a line.

    Returns:
        At least one table. A block holds at least one column that is no key, even if it is wider.
    """
    sizes = [_name_room(table, width), *_sizes(table)[1:]]
    key_width = sum(size + _GAP for size in sizes[: table.keys])
    chosen: list[list[int]] = [[]]
    used = key_width
    for index in range(table.keys, len(table.columns)):
        need = sizes[index] + _GAP
        if chosen[-1] and used + need - _GAP > width:
            chosen.append([])
            used = key_width
        chosen[-1].append(index)
        used += need
    keys = list(range(table.keys))
    return [chosen_columns(table, keys + indices) for indices in chosen]


def terminal(tables: Table | Iterable[Table], width: int = 80, color: bool = False) -> str:
    """Tables as text for a terminal: names wrap, folded columns are left out, wide tables are cut.

    Args:
        tables: One or more.
        width: Characters to a line; 80 is always readable.
        color: Whether to keep terminal escapes for what is bold.

    Returns:
        The text.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    sink = io.StringIO()
    console = Console(
        file=sink, width=width, force_terminal=color, no_color=not color, highlight=False
    )
    for table in [tables] if isinstance(tables, Table) else tables:
        console.print(Text(table.title, style="bold"), end="\n\n")
        shown = _shown(table, width)
        room = _name_room(shown, width)
        for block in blocks(shown, width):
            grid = RichTable(
                box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
            )
            for index, head in enumerate(block.columns):
                grid.add_column(
                    Text(head), justify="left" if index < table.words else "right", no_wrap=True
                )
            for index, row in enumerate(block.rows):
                if index in block.sections:
                    grid.add_section()
                cells = (_broken(row[0], room), *row[1:])
                grid.add_row(
                    *(
                        Text(cell, style="bold" if (index, place) in block.strong else "")
                        for place, cell in enumerate(cells)
                    )
                )
            console.print(grid)
            console.print()
        for note in table.notes:
            console.print(Text(note))
        if table.notes:
            console.print()
    return "\n".join(line.rstrip() for line in sink.getvalue().split("\n"))


def _shown(table: Table, width: int) -> Table:
    """A table without folded columns, and without spare ones as long as it is too wide."""
    shown = [index for index in range(len(table.columns)) if index not in table.folded]
    for index in (None, *table.spare):
        shown = [other for other in shown if other != index]
        found = chosen_columns(table, shown)
        needed = [_name_room(found, width), *_sizes(found)[1:]]
        if sum(needed) + _GAP * (len(needed) - 1) <= width:
            break
    return found


def _name_room(table: Table, width: int) -> int:
    """Characters that the first column may have: fewer than its own where a table is too wide."""
    sizes = _sizes(table)
    missing = sum(sizes) + _GAP * (len(sizes) - 1) - width
    return sizes[0] if missing <= 0 else max(min(_NAME, sizes[0]), sizes[0] - missing)


def _broken(name: str, room: int) -> str:
    """A name on lines of at most so many characters, broken after a hyphen or before a plus."""
    lines = [""]
    for part in re.split(r"(?<=[-_/])|(?=\+| )", name):
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(line[i : i + room] for line in lines for i in range(0, len(line), room))


def _sizes(table: Table) -> list[int]:
    """The width of each column in characters."""
    return [
        max(
            len(line)
            for text in (head, *(row[index] for row in table.rows))
            for line in _lines(text)
        )
        for index, head in enumerate(table.columns)
    ]


def screen_width() -> int:
    """Characters to a line where the output goes: at least 80, and 200 where it is no screen."""
    return max(80, shutil.get_terminal_size(fallback=(200, 24)).columns)


def markdown(table: Table) -> str:
    """A table as GitHub Markdown, without its title, its notes as a list below."""
    from tabulate import tabulate

    sides = ["left" if index < table.words else "right" for index in range(len(table.columns))]
    text = tabulate(
        [
            [
                _bold(inert(cell)) if (i, j) in table.strong else inert(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(table.rows)
        ],
        [inert(_one_line(head)) for head in table.columns],
        tablefmt="pipe",
        colalign=sides if table.rows else None,
        disable_numparse=True,
    )
    notes = ["", *(f"- {inert(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([text, *notes]) + "\n"


def _lines(text: str) -> list[str]:
    return text.split("\n") if text else [""]


def _one_line(head: str) -> str:
    """``piqa (acc)`` for a heading of two lines."""
    first, *rest = _lines(head)
    return f"{first} ({' '.join(rest)})" if rest else first


def inert(text: str) -> str:
    """Text that is no markup in Markdown: no HTML, link, image, code, emphasis or cell's end."""
    return re.sub(r"([\\|*`<\[])", r"\\\1", plain(text))


def _bold(text: str) -> str:
    return f"**{text}**"


def code(text: str) -> str:
    """Text as code in a line of Markdown, fenced by more backticks than it holds in a row."""
    text = plain(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no cell is a formula to a spreadsheet.

    A text that begins with ``=``, ``+``, ``-`` or ``@`` is given an apostrophe before it; numbers
    are numbers.
    """
    safe = frame.rename(columns=_no_formula)
    for name in safe.columns:
        safe[name] = safe[name].map(_no_formula)
    return str(safe.to_csv(index=False, lineterminator="\n"))


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """A frame as Parquet; a column of words and numbers holds words."""
    import pandas as pd

    typed = frame.copy()
    for name in typed.columns:
        if (
            typed[name].dtype == "object"
            and len({type(value) for value in typed[name].dropna()}) > 1
        ):
            typed[name] = typed[name].map(lambda value: None if pd.isna(value) else str(value))
    sink = io.BytesIO()
    typed.to_parquet(sink, index=False)
    return sink.getvalue()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
