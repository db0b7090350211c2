"""``streamline-bench rm``: single cells of a run, away with their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streamline.results.record import Record

__all__ = ["EPILOG", "command"]

EPILOG = """
A CELL is written as `compare` takes it, without the folder: METHOD, METHOD@SPARSITY, then keys
(model, method, sparsity, seed, recovery). All cells that fit are removed; the next run of the same
command computes them again. Examples:

    streamline-bench rm out/run shortgpt@0.25

    streamline-bench rm out/run llm-streamline-ffn@0.25,seed=1 model=opt-1.3b --dry-run
"""


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    cells: Annotated[
        list[str], typer.Argument(metavar="CELL...", help="METHOD@SPARSITY,KEY=VALUE.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
) -> None:
    """Remove cells of a run: their records, samples, plans, losses and cached answers."""
    from streamline.errors import ConfigError
    from streamline.results.record_file import load
    from streamline.results.select import cell_name, read_selector
    from streamline.run.folder import cell_files, named_cells, remove_cells

    if folder.is_file():
        raise ConfigError(f"{folder} is a file; give the folder that a run wrote with --out")
    for cell in cells:
        if not read_selector(cell, cell):
            raise ConfigError(f"{cell!r} names no cell; write METHOD@SPARSITY,KEY=VALUE")
    records, chosen = load(folder), named_cells(folder, cells)
    files = {cell_name(record, records): cell_files(folder, record) for record in chosen}
    if not dry_run:
        _renew_report(folder, remove_cells(folder, chosen))
    for name, paths in files.items():
        print(f"{'would remove' if dry_run else 'removed'} {name}")
        for path in paths:
            print(f"  {path.relative_to(folder)}")


def _renew_report(folder: Path, remaining: list[Record]) -> None:
    """The report of what remains; without any cell there is none."""
    from streamline.report.report import remove_report
    from streamline.run.reporting import report_run

    if remaining:
        report_run(folder)
    else:
        remove_report(folder)
