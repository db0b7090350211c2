"""The parts of a run put together: one file of records, as the whole run would have written it.

Example::

    found = merge(Path("out/run"))
    found.missing               # cells that no part has finished
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from streamline.errors import ConfigError
from streamline.report.artifacts import run_settings
from streamline.results.record import Record
from streamline.results.record_file import by_identity, recorded, replace_all
from streamline.run.cell import UNFINISHED, Cell, all_cells, unfinished
from streamline.run.commands import gather_commands
from streamline.run.config import RunConfig
from streamline.run.shards.part import claims_of, part_folders
from streamline.sharing.claims import Claim, held

__all__ = ["Merged", "merge"]

_NOT_BEGUN = f"{UNFINISHED}: no shard has begun it. The command of its shard does it"


@dataclass(frozen=True)
class Merged:
    """What became of a run's parts.

    Attributes:
        records: All of the run's; a cell that no part has begun is a failed one that says so.
        missing: Cells without figures that were neither skipped nor ended by an error of theirs.
        busy: Parts that somebody is working on; they are left where they are.
    """

    records: list[Record]
    missing: list[Cell]
    busy: list[str]


def merge(folder: Path) -> Merged:
    """Put the records of all parts into the run's ``results.json``, and take finished parts away.

    Whoever works on a part may go on with it: its records so far are taken, and it stays.

    Args:
        folder: The run's folder; without parts its records stay as they are.

    Raises:
        ConfigError: If it holds neither records nor parts, or what it holds is malformed.
    """
    cells = _cells(folder)
    parts = part_folders(folder)
    if not parts:
        records = recorded(folder)
        return Merged(records, unfinished(cells, by_identity(records)), [])
    with ExitStack() as claimed:
        claimed.enter_context(held(claims_of(folder) / "merging"))
        busy = []
        for part in parts:
            claim = Claim(claims_of(folder) / part.name)
            if claim.acquire_unless_held():
                claimed.callback(claim.release)
            else:
                busy.append(part.name)
        records = _together(folder, part_folders(folder), cells)
        replace_all(folder, records)
        gather_commands(folder, parts)
        for part in parts:
            if part.name not in busy:
                shutil.rmtree(part, ignore_errors=True)
                shutil.rmtree(folder / "cache" / "activations" / part.name, ignore_errors=True)
    return Merged(records, unfinished(cells, by_identity(records)), busy)


def _cells(folder: Path) -> list[Cell]:
    """The cells that a run's settings ask for; none where it has left no settings."""
    settings = run_settings(folder)
    # Where its texts and data lie on the machines that worked does not matter here.
    known = {
        name: value
        for name, value in settings.items()
        if name in RunConfig.model_fields and name not in ("data_dir", "include_path")
    }
    if not known:
        return []
    try:
        return all_cells(RunConfig.model_validate(known))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{folder / 'run.json'} does not say what the run was to do: {where}: {first['msg']}. "
            "Restore it, or run again."
        ) from error


def _together(folder: Path, parts: Sequence[Path], cells: Sequence[Cell]) -> list[Record]:
    """All records, in the order in which one process would have written them."""
    found = by_identity(recorded(folder))
    for part in parts:
        found |= by_identity(recorded(part))
    for cell in cells:
        if cell.identity not in found:
            values = cell.record(status="failed", reason=_NOT_BEGUN)
            found[cell.identity] = Record.build(values)
    place = {cell.identity: number for number, cell in enumerate(cells)}
    # Of earlier commands first, as they are.
    return sorted(found.values(), key=lambda record: place.get(record.identity, -1))
