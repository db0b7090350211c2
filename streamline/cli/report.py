"""``streamline-bench report``: tables, figures and pages from a run's records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli import complete

__all__ = ["EPILOG", "command"]

EPILOG = """
Writes report.md, report.html, tables/ (CSV and LaTeX) and figures/ (SVG) into the folder. No model
is needed. Example:

    streamline-bench report out
"""


def command(
    directory: Annotated[str, typer.Argument(help="A run's folder, with results.json.")],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Follow this suite's table layout; by default that of the run.",
            autocompletion=complete.suites,
        ),
    ] = None,
) -> None:
    """Make the report of a run from its records."""
    from streamline.errors import ConfigError
    from streamline.run.reporting import report_run

    folder = Path(directory).expanduser()
    if folder.is_file() or not directory.strip():
        raise ConfigError(
            f"{directory!r} is no folder; give the folder that a run wrote with --out"
        )

    page = report_run(folder, suite)
    print(f"wrote {page} and {page.with_suffix('.md')}")
