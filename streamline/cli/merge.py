"""``streamline-bench merge``: the shards of a run, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "command"]

EPILOG = """
A run is divided with `--shard I/N`: each process, on whatever machine, works a part of the cells
into the same folder. What is done by now is put into results.json and a report is made; cells that
are missing or failed are named, and the exit code is 1. Shards that are still working go on, and
merge may be given again.

    for i in 1 2 3; do streamline-bench --suite embedded --shard $i/3 & done; wait

    streamline-bench merge out/embedded
"""


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")],
) -> None:
    """Put the shards of a run together, name the cells that are missing, and make the report."""
    from streamline.cli.screen.show import show_failed, show_results
    from streamline.errors import ConfigError
    from streamline.run.reporting import report_run
    from streamline.run.shards.merging import merge

    if folder.is_file():
        raise ConfigError(f"{folder} is a file; give the folder that a run wrote with --out")
    found = merge(folder.expanduser())
    page = report_run(folder.expanduser())
    show_results(found.records)
    if found.busy:
        print(f"still at work: {', '.join(found.busy)}")
    print(f"report: {page}")
    if show_failed(found.records):
        raise typer.Exit(1)
