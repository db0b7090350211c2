"""``streamline-bench report``: tables, figures and pages from runs' records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli import complete

__all__ = ["EPILOG", "command"]

EPILOG = """
Writes report.html (one file), report.md, tables/ (CSV, Parquet, LaTeX) and figures/ (SVG, PDF). No
model is needed. Several runs, of other models, methods, seeds or machines, stand side by side; what
cannot be compared is refused. Shards that lie in a folder are put together first, as `merge` does.

    streamline-bench report out

    streamline-bench report out/opt out/llama --out out/both
"""


def command(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="Runs' folders, with results.json.")
    ],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Follow this suite's table layout; by default that of the run.",
            autocompletion=complete.suites,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Where to write; by default the run's folder, or report for several."),
    ] = None,
) -> None:
    """Make the report of a run, or of several side by side, from their records."""
    from streamline.cli.screen.show import show_failed
    from streamline.errors import ConfigError
    from streamline.run.reporting import report_run, report_runs
    from streamline.run.shards.merging import merge
    from streamline.run.shards.part import part_folders

    folders = [Path(directory).expanduser() for directory in directories]
    for folder, directory in zip(folders, directories, strict=True):
        if folder.is_file() or not directory.strip():
            raise ConfigError(
                f"{directory!r} is no folder; give the folder that a run wrote with --out"
            )
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given twice; give each run once")
    target = None if out is None else Path(out).expanduser()
    if target is not None and target.is_file():
        raise ConfigError(f"{out!r} is a file; give --out a folder, which need not be there")
    divided = [merge(folder) for folder in folders if part_folders(folder)]
    if len(folders) == 1 and target is None:
        page = report_run(folders[0], suite)
    else:
        page = report_runs(folders, target or Path("report"), suite)
    print(f"wrote {page} and {page.with_suffix('.md')}")
    if any([show_failed(found.records) for found in divided]):
        raise typer.Exit(1)
