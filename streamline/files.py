"""Files that appear whole or not at all, and where they are kept between runs.

Every artefact of a run is written here: first under a temporary name in the same folder, then
moved onto its final name in one step, so that a killed process leaves the old file or the new
one and never a part of either.

Example::

    write_json_atomic(out / "results.json", {"schema": 1, "records": []})
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "cache_dir",
    "ordinary_modes",
    "remains_of",
    "sweep",
    "sweep_of",
    "temporary_folder",
    "temporary_of",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_text_atomic",
]


_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def cache_dir() -> Path:
    """The folder for everything fetched or derived: ``STREAMLINE_CACHE``, or ~/.cache/streamline.

    It is not created here.
    """
    named = os.environ.get("STREAMLINE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "streamline"


def temporary_of(target: Path) -> Path:
    """A name beside a file or folder for what is to become it; nobody else has the same."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def sweep(folder: Path, idle: float = 0.0) -> None:
    """Remove files that writers which were killed have left in a folder and below it.

    Folders that are being made, and what is in them, are left to their makers.

    Args:
        folder: Nobody else may be writing there, but for files that changed later than that.
        idle: Seconds for which a file that is removed has not been written to.
    """
    until = time.time() - idle
    for path in list(folder.rglob(".*.tmp")):
        *parents, name = path.relative_to(folder).parts
        in_one = any(map(_TEMPORARY.fullmatch, parents))
        if _TEMPORARY.fullmatch(name) and not in_one and path.is_file():
            with suppress(FileNotFoundError):
                if not idle or path.stat().st_mtime < until:
                    path.unlink()


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder of a name as :func:`temporary_of` gives, gone when the block ends.

    Args:
        target: What is to come of it; if it is moved there, it stays.
    """
    temporary = temporary_of(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remains_of(target: Path) -> list[Path]:
    """What writers of one file or folder, working or killed, have beside it."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in target.parent.glob(".*.tmp"))
    return [path for path, match in found if match and match.group(1) == target.name]


def sweep_of(target: Path) -> None:
    """Remove what writers of one file or folder that were killed have left beside it.

    Args:
        target: Its final name; nobody else may be writing it.
    """
    for path in remains_of(target):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def ordinary_modes(folder: Path) -> None:
    """Give all in a folder the modes that ``open`` and ``mkdir`` give, whatever wrote it.

    Args:
        folder: Made by ``mkdir``, so that its own mode is the ordinary one.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def write_bytes_atomic(path: str | Path, *parts: bytes | memoryview) -> None:
    """Write bytes so that a reader sees the old file or the whole new one.

    Parent folders are made. The file's mode is what ``open`` would have given it.

    Args:
        path: The final name.
        *parts: The whole content, in order.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(target)
    try:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(target)  # the error of a full disk names no file
        raise


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write text as UTF-8 without newline translation, whole or not at all.

    Args:
        path: The final name; parent folders are made.
        text: The whole content.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """Write an object as indented JSON, whole or not at all.

    Args:
        path: The final name; parent folders are made.
        obj: Anything ``json`` can write. Keys keep their order.

    Raises:
        TypeError: If ``obj`` holds something that JSON cannot hold.
        ValueError: If ``obj`` holds NaN or an infinity; a number that was not measured is None.
        OSError: If the folder cannot be made or written to.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")
