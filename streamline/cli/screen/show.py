"""What the verbs show: errors, tables and JSON on the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer

from streamline.cli.screen.streams import is_unicode
from streamline.distributed.team import follows

if TYPE_CHECKING:
    from streamline.results.record import Record

__all__ = [
    "require_yes",
    "show_error",
    "show_failed",
    "show_failure",
    "show_json",
    "show_results",
    "show_table",
    "show_text",
    "show_warning",
]


def show_error(error: object) -> None:
    """Write one message to standard error, without a traceback."""
    _say("error", "bold red", str(error))


def show_failure(what: str, reason: str | None) -> None:
    """Write to standard error that one piece of the work failed, and why: of several, one does."""
    if follows():
        return
    _say("failed", "bold red", f"{what}: {reason or 'no reason given'}")


def show_failed(records: Iterable[Record]) -> bool:
    """Write to standard error which cells failed or lack what they were to be asked, and why.

    Returns:
        Whether there are any.
    """
    from streamline.results.record import label

    failed: dict[str | None, list[str]] = {}
    for record in records:
        name = f"{record.model} {label(record)}"
        if record.status == "failed":
            failed.setdefault(record.reason, []).append(name)
        for what, why in record.notes.get("missing", {}).items():
            failed.setdefault(f"{what} is missing: {why}", []).append(name)
    for reason, names in failed.items():
        show_failure(", ".join(names), reason)
    return bool(failed)


def show_warning(message: str) -> None:
    """Write to standard error what the user should know before going on: of several, one does."""
    if follows():
        return
    _say("warning", "bold yellow", message)


def show_results(records: Sequence[Record]) -> None:
    """Write a run's averages to standard output, within the screen; each task is in the report."""
    from streamline.report.findings.rows import rows
    from streamline.report.render import screen_width, terminal
    from streamline.report.tables import results_table

    for model in dict.fromkeys(record.model for record in records):
        table = results_table(rows([one for one in records if one.model == model], {}))
        print(terminal(table, width=screen_width(), color=sys.stdout.isatty()))


def show_json(value: Any) -> None:
    """Write a value to standard output as indented JSON; escaped where it has ASCII alone."""
    ascii_only = not is_unicode(sys.stdout)
    print(json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False))


def show_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, whole: bool = False
) -> None:
    """Write rows to standard output, one line each; on a terminal cut to its width.

    Args:
        rows: Mappings; a missing or None value shows as ``-``.
        columns: Keys to show, in order; they are the headings too.
        whole: Whether what is too wide goes on in further lines and is not cut.
    """
    lines = [[_cell(row.get(column)) for column in columns] for row in rows]
    down = list(zip(columns, *lines, strict=True))
    widths = [max(map(len, cells)) for cells in down]
    words = [max(map(len, " ".join(cells).split())) if whole else 0 for cells in down]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    while room is not None and sum(widths) + 2 * len(widths) - 2 > max(room, 12 * len(widths)):
        able = [place for place, width in enumerate(widths) if width > words[place]]
        widths[max(able or range(len(widths)), key=widths.__getitem__)] -= 1
    for cells in [list(columns), ["-" * width for width in widths], *lines]:
        parts = [_lines(*pair) if whole else pair[:1] for pair in zip(cells, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            print("  ".join(map(_fitted, line, widths)).rstrip())


def show_text(text: str, indent: int = 2) -> None:
    """Write a sentence to standard output, wrapped at the screen's width, at most 96 characters.

    Args:
        text: The words; an empty one is an empty line.
        indent: Spaces before every line but the first.
    """
    lines = textwrap.wrap(
        text,
        min(96, shutil.get_terminal_size().columns),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _fitted(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if value < 10_000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _say(kind: str, style: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble((f"{kind}: ", style), message))


def require_yes(question: str, otherwise: str) -> None:
    """Ask before something is done that cannot be undone.

    Args:
        question: To be answered with y or n.
        otherwise: What is so, and what to do, if the answer is no or there is none.

    Raises:
        ConfigError: If the answer is not yes.
        KeyboardInterrupt: If it is an interrupt, which is not taken for a no.
    """
    from streamline.errors import ConfigError

    try:
        agreed = typer.confirm(question)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        agreed = False
    if not agreed:
        raise ConfigError(otherwise)
