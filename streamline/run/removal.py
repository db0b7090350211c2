"""Cells taken out of a run's folder: the record, and every file that is the cell's alone.

Example::

    remove_cells(out, [record for record in load(out) if record.method == "shortgpt"])
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from streamline.results.record import Record, remove
from streamline.results.samples import samples_path
from streamline.run.folder import claimed

__all__ = ["cell_files", "remove_cells"]


def cell_files(folder: Path, record: Record) -> list[Path]:
    """The files and folders that belong to one cell and no other.

    They are named for the cell (samples, plan, losses, training) or for its key (answers).

    Args:
        folder: The run's folder.
        record: The cell's record.

    Returns:
        What exists, sorted; nothing that lies inside a folder that is listed itself.
    """
    name = samples_path(folder, record).stem
    key = record.key[:16] if record.key else None
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        mine = path.name.startswith(name) or path.name == key
        if mine and not any(other in path.parents for other in found):
            found.append(path)
    return found


def remove_cells(folder: Path, records: Sequence[Record]) -> None:
    """Remove cells and make the report of the others again.

    A cell whose record is gone is computed again by the next run. What cells share, such as the
    calibration, stays.

    Args:
        folder: The run's folder.
        records: The cells.

    Raises:
        ConfigError: If a run is at work in the folder.
    """
    from streamline.report.report import write_report

    with claimed(folder):
        remaining = remove(folder, records)
        for record in records:
            for path in cell_files(folder, record):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if remaining:
            write_report(folder)
            return
        for name in ("report.html", "report.md"):  # they show what is gone
            (folder / name).unlink(missing_ok=True)
        for name in ("tables", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)
