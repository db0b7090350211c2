"""Tables in the terminal, in Markdown, as CSV and in LaTeX; names and reasons in them are inert.

Example::

    text = terminal(results_table(records), width=80)
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamline.report.table import Table, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "blocks",
    "code",
    "csv_text",
    "inert",
    "latex",
    "markdown",
    "screen_width",
    "terminal",
]

_GAP = 2
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\texttt{\char34}",
    "±": r"$\pm$",
    "−": r"$-$",
}


def blocks(table: Table, width: int = 80) -> list[Table]:
    """Cut a table into blocks of columns that fit a width; each repeats the key columns.

    Args:
        table: Any table.
        width: Characters to a line.

    Returns:
        At least one table. A block holds at least one column that is no key, even if it is wider.
    """
    sizes = [
        max(
            len(line)
            for text in (head, *(row[index] for row in table.rows))
            for line in _lines(text)
        )
        for index, head in enumerate(table.columns)
    ]
    key_width = sum(size + _GAP for size in sizes[: table.keys])
    chosen: list[list[int]] = [[]]
    used = key_width
    for index in range(table.keys, len(table.columns)):
        need = sizes[index] + _GAP
        if chosen[-1] and used + need > width:
            chosen.append([])
            used = key_width
        chosen[-1].append(index)
        used += need
    keys = list(range(table.keys))
    return [_columns(table, keys + indices) for indices in chosen]


def terminal(tables: Table | Iterable[Table], width: int = 80, color: bool = False) -> str:
    """Tables as text for a terminal, wide ones cut into blocks.

    Args:
        tables: One or more.
        width: Characters to a line; 80 is always readable.
        color: Whether to keep terminal escapes for bold headings.

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
        for block in blocks(table, width):
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
                grid.add_row(*(Text(cell) for cell in row))
            console.print(grid)
            console.print()
        for note in table.notes:
            console.print(Text(note))
        if table.notes:
            console.print()
    return "\n".join(line.rstrip() for line in sink.getvalue().split("\n"))


def screen_width() -> int:
    """Characters to a line where the output goes: at least 80, and 200 where it is no screen."""
    return max(80, shutil.get_terminal_size(fallback=(200, 24)).columns)


def markdown(table: Table) -> str:
    """A table as GitHub Markdown, without its title, its notes as a list below."""
    from tabulate import tabulate

    sides = ["left" if index < table.words else "right" for index in range(len(table.columns))]
    text = tabulate(
        [[inert(cell) for cell in row] for row in table.rows],
        [inert(_one_line(head)) for head in table.columns],
        tablefmt="pipe",
        colalign=sides if table.rows else None,
        disable_numparse=True,
    )
    notes = ["", *(f"- {inert(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([text, *notes]) + "\n"


def latex(table: Table) -> str:
    """A table for LaTeX with the packages booktabs and graphicx, notes as comments above."""
    heads = []
    for head in table.columns:
        lines = [_escape_latex(line) for line in _lines(head)]
        stack = r" \\ ".join(lines)
        heads.append(stack if len(lines) == 1 else rf"\shortstack{{{stack}}}")
    comments = [f"% {plain(line)}" for line in (table.title, *table.notes)]
    spec = "l" * table.words + "r" * (len(heads) - table.words)
    body = [
        ("\\midrule\n" if index in table.sections else "")
        + " & ".join(_escape_latex(cell) for cell in row)
        + r" \\"
        for index, row in enumerate(table.rows)
    ]
    return "\n".join(
        [
            *comments,
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _columns(table: Table, indices: list[int]) -> Table:
    """The same table with some of its columns."""
    return replace(
        table,
        columns=tuple(table.columns[index] for index in indices),
        rows=tuple(tuple(row[index] for index in indices) for row in table.rows),
    )


def _lines(text: str) -> list[str]:
    return text.split("\n") if text else [""]


def _one_line(head: str) -> str:
    """``piqa (acc)`` for a heading of two lines."""
    first, *rest = _lines(head)
    return f"{first} ({' '.join(rest)})" if rest else first


def inert(text: str) -> str:
    """Text that is no markup in Markdown: no HTML, link, image, code, emphasis or cell's end."""
    return re.sub(r"([\\|*`<\[])", r"\\\1", plain(text))


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


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _escape_latex(text: str) -> str:
    """Text that is no command; a bracket or a star after a row's end would be read as its own."""
    safe = "".join(_LATEX.get(character, character) for character in text)
    return f"{{{safe[0]}}}{safe[1:]}" if safe.startswith(("[", "*")) else safe
