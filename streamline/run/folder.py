"""A run's folder: one process at a time, and no results side by side that cannot be compared.

Example::

    with claimed(config.out):
        refuse_mixture(config)
        ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamline.errors import ConfigError
from streamline.results.record import FILE_NAME, label, load
from streamline.run.cell import Cell, cell_key, expand
from streamline.run.config import RunConfig
from streamline.run.settings import names

SETTINGS = "run.json"
_LOCK = ".run.lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; a killed run's claim ends with its process.

    Args:
        folder: Made if missing.

    Raises:
        ConfigError: If another run has it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another run is at work in {folder}: wait until it ends, stop it, or give another "
            "folder with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def refuse_mixture(config: RunConfig) -> None:
    """Refuse to add to results of the same models that were made with other settings.

    Cells that this run works itself are no matter: it replaces them.

    Args:
        config: The run.

    Raises:
        ConfigError: If such results would stay in the folder; the message names them and, as far
            as the folder tells, the settings.
    """
    if not (config.out / FILE_NAME).is_file():
        return
    stale = []
    for record in load(config.out):
        if record.model not in config.models or record.status != "ok":
            continue
        own = config.for_model(record.model)
        cell = Cell(*record.identity)
        fingerprint = str(record.versions.get("model_sha256"))
        if cell not in expand(own, record.model) and record.key != cell_key(
            cell, own, record.method_repr or "", fingerprint
        ):
            stale.append(f"{record.model} {label(record)}")
    if stale:
        shown = ", ".join(stale[:4]) + (f" and {len(stale) - 4} more" if stale[4:] else "")
        raise ConfigError(
            f"{config.out} holds {shown}, made with other settings{_differences(config)}; one "
            "report would show them beside this run's as if they could be compared. Give another "
            "folder with --out, the same settings, or these methods too so that they are redone"
        )


def _differences(config: RunConfig) -> str:
    """What the folder's last run had otherwise, if it tells."""
    try:
        before = json.loads((config.out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    now = config.model_dump(mode="json")
    found = [
        f"{name} was {json.dumps(before[name])}"
        for name in names(RunConfig, "keyed")
        if name in before and before[name] != now[name]
    ]
    return f" ({'; '.join(found)})" if found else ""
