"""The file of a run's records, ``results.json``: always whole, shared safely.

It is rewritten atomically under a file lock, so many processes may finish cells in the same folder,
and being killed leaves the file as it was before or after.

Example::

    upsert("out", {"model": "m", "method": "shortgpt", "sparsity": 0.25, "status": "ok"})
    [record] = load("out")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.files import write_json_atomic
from streamline.hashing import content_key
from streamline.reading import read_json
from streamline.results.record import SCHEMA_VERSION, Identity, Record

__all__ = [
    "FILE_NAME",
    "by_identity",
    "find",
    "load",
    "recorded",
    "remove",
    "replace_all",
    "upsert",
]

FILE_NAME = "results.json"
_LOCK_NAME = ".results.lock"
_LOCK_SECONDS = 60.0


def load(directory: str | Path) -> list[Record]:
    """Read all records of a run, in the order in which their cells were first finished.

    Args:
        directory: The folder that holds ``results.json``, that file, or a file of one record as
            ``streamline-bench evaluate`` writes it.

    Returns:
        The records.

    Raises:
        ConfigError: If there is no such file, or it is not of this schema.
    """
    path = _results_path(directory)
    if not path.is_file():
        apart = (path.parent / "shards").is_dir()
        raise ConfigError(
            f"No {FILE_NAME} in {path.parent}. "
            + (
                f"Put its shards together first: streamline-bench merge {path.parent}"
                if apart
                else "Give the folder that a run wrote with --out."
            )
        )
    return _records(path)


def recorded(folder: Path) -> list[Record]:
    """The records of a run's folder as :func:`load` reads them; none if no cell was finished."""
    return load(folder) if (folder / FILE_NAME).is_file() else []


def upsert(directory: str | Path, *records: Record | Mapping[str, Any]) -> Record:
    """Put records into the folder; each replaces an earlier one of the same cell.

    Safe against other processes doing the same, and against being killed: the file is whole at
    any moment.

    Args:
        directory: The run's folder; made if missing.
        records: Records, or their keys; at least one.

    Returns:
        The last one as written.

    Raises:
        ConfigError: If a record or the file that is there already is malformed.
        filelock.Timeout: If another process holds the folder's lock for a minute.
    """
    from filelock import FileLock

    checked = [
        Record.build(one.model_dump() if isinstance(one, Record) else one) for one in records
    ]
    path = _results_path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / _LOCK_NAME, timeout=_LOCK_SECONDS):
        there = {old.identity: old for old in (_records(path) if path.is_file() else [])}
        _write(path, list((there | {new.identity: new for new in checked}).values()))
    return checked[-1]


def remove(directory: str | Path, records: Sequence[Record]) -> list[Record]:
    """Take records out of the folder, as safely as :func:`upsert` puts one in.

    Args:
        directory: The run's folder.
        records: The records; those of the same cells are removed.

    Returns:
        The records that remain.

    Raises:
        ConfigError: If there is no file of records, or it is malformed.
        filelock.Timeout: If another process holds the folder's lock for a minute.
    """
    from filelock import FileLock

    gone = {record.identity for record in records}
    path = _results_path(directory)
    with FileLock(path.parent / _LOCK_NAME, timeout=_LOCK_SECONDS):
        remaining = [record for record in load(directory) if record.identity not in gone]
        _write(path, remaining)
    return remaining


def replace_all(directory: str | Path, records: Sequence[Record]) -> None:
    """Write the records of a folder anew, in their order; made if missing.

    Args:
        directory: The run's folder.
        records: All of its records, each cell once.
    """
    _write(Path(directory) / FILE_NAME, records)


def by_identity(records: Iterable[Record]) -> dict[Identity, Record]:
    """Records by the cells that they are of."""
    return {record.identity: record for record in records}


def find(
    records: list[Record],
    model: str,
    method: str,
    sparsity: float,
    seed: int = 0,
    recovery: str = "none",
) -> Record | None:
    """The record of a cell, or None if that cell has not been run."""
    wanted = (model, method, float(sparsity), seed, recovery)
    return next((record for record in records if record.identity == wanted), None)


def _write(path: Path, records: Sequence[Record]) -> None:
    items = [record.to_json() for record in records]
    content = {"schema": SCHEMA_VERSION, "checksum": _checksum(items), "records": items}
    write_json_atomic(path, content)


def _checksum(items: list[dict[str, Any]]) -> str | None:
    """What stands beside records, None for such as are never written."""
    try:
        return content_key(items)
    except ValueError:  # NaN
        return None


def _results_path(directory: str | Path) -> Path:
    path = Path(directory)
    return path if path.suffix == ".json" and path.is_file() else path / FILE_NAME


def _records(path: Path) -> list[Record]:
    """The records of a file, each cell once."""
    records: dict[tuple[Any, ...], Record] = {}
    for item in _read(path):
        try:
            record = Record.build(item)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        if record.identity in records:
            raise ConfigError(
                f"{path}: the cell {', '.join(map(str, record.identity))} is there twice. Take one "
                "of the two records out, or run again into another folder."
            )
        records[record.identity] = record
    return list(records.values())


def _read(path: Path) -> list[dict[str, Any]]:
    """The raw records of a file after checking its schema."""
    content = read_json(path, "It is written whole by a run; restore it or remove it.")
    if isinstance(content, dict) and {"model", "method", "status"} <= set(content):
        return [content]
    schema = content.get("schema") if isinstance(content, dict) else None
    found: Any = content.get("records") if isinstance(content, dict) else None
    listed = isinstance(found, list) and all(isinstance(item, dict) for item in found)
    if schema != SCHEMA_VERSION or not listed:
        raise ConfigError(
            f"{path} has schema {schema!r}; this version reads schema {SCHEMA_VERSION} with a list "
            "of records. Install the version that wrote it, or run again into another folder."
        )
    if "checksum" in content and content["checksum"] != _checksum(found):
        raise ConfigError(
            f"{path} is not what was written: its records do not have the checksum beside them. "
            "Restore it, or remove it and give the run's command again; if you edited it on "
            "purpose, take the checksum out."
        )
    records: list[dict[str, Any]] = found
    return records
