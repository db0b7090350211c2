r"""Tables for LaTeX: ``compact`` for one column of a page, ``full`` as ``table*`` over both.

Example::

    write_text_atomic("results-full.tex", latex(table, "full"))     # \input{results-full}
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from streamline.report.table import MISSING, Table, chosen_columns, plain

__all__ = ["latex"]

_SIGNS = {
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
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': r"\texttt{\char34}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "⁵": "$^5$",
    "¹": "$^1$",
    "…": r"\dots{}",
}
#: A minus before a number, not a hyphen within a name.
_MINUS = re.compile(r"(?<![\w.)\]])-(?=[\d.])")


def latex(table: Table, form: Literal["compact", "full"] = "full") -> str:
    """A table for LaTeX.

    Args:
        table: Any table; notes stand as comments above it.
        form: ``compact`` leaves folded columns out and is a ``table`` of one column; ``full`` has
            all columns, and is a ``table*`` if there are more than six.

    Returns:
        The text; its first comments name the packages that it needs.
    """
    shown = [i for i in range(len(table.columns)) if form == "full" or i not in table.folded]
    table = chosen_columns(table, shown)
    wide = form == "full" and len(table.columns) > 6
    environment = "table*" if wide else "table"
    room = r"\textwidth" if wide else r"\linewidth"
    heads = []
    for head in table.columns:
        lines = [_escape(line) for line in head.split("\n")]
        stack = r" \\ ".join(lines)
        heads.append(stack if len(lines) == 1 else rf"\shortstack{{{stack}}}")
    spec = "l" * table.words + "r" * (len(heads) - table.words)
    body = [
        ("\\midrule\n" if index in table.sections else "")
        + " & ".join(_cell(cell, (index, place) in table.strong) for place, cell in enumerate(row))
        + r" \\"
        for index, row in enumerate(table.rows)
    ]
    name = table.name + ("-compact" if form == "compact" else "")
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx}.",
            *(f"% {plain(line)}" for line in (table.title, *table.notes)),
            rf"\begin{{{environment}}}",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_escape(table.title)}}}",
            rf"\label{{tab:{name}}}",
            rf"\resizebox{{\ifdim\width>{room}{room}\else\width\fi}}{{!}}{{%",
            rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def _cell(text: str, strong: bool) -> str:
    if text == MISSING:
        return "--"
    return rf"\textbf{{{_escape(text)}}}" if strong else _escape(text)


def _sign(sign: str) -> str:
    """A sign as LaTeX prints it; a question mark for what is no sign, which would end its run."""
    return _SIGNS.get(sign, "?" if unicodedata.category(sign).startswith("C") else sign)


def _escape(text: str) -> str:
    """Text that is no command; a bracket or a star after a row's end would be read as its own."""
    safe = "".join(map(_sign, _MINUS.sub("−", plain(text))))
    return f"{{{safe[0]}}}{safe[1:]}" if safe.startswith(("[", "*")) else safe
