"""Files that appear whole or not at all, and keys made from content.

Every artefact of a run is written here: first under a temporary name in the same folder, then
moved onto its final name in one step, so that a killed process leaves the old file or the new
one and never a part of either.

Example::

    write_json_atomic(out / "results.json", {"schema": 1, "records": []})
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "content_key",
    "folder_key",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_text_atomic",
]


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write bytes so that a reader sees the old file or the whole new one.

    Parent folders are made. The file's mode is what ``open`` would have given it.

    Args:
        path: The final name.
        data: The whole content.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
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


def content_key(obj: Any) -> str:
    """A name for a value: the SHA-256 of its canonical JSON.

    Equal values have equal keys whatever the order of their keys; floats are distinguished to the
    last bit, so 0.125 and 0.12 never meet.

    Args:
        obj: Anything ``json`` can write.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If ``obj`` holds something that JSON cannot hold.
        ValueError: If ``obj`` holds NaN or an infinity.
    """
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def folder_key(folder: Path) -> str:
    """A name for what lies in a folder: its files' relative names and their content.

    A file's hash is remembered for as long as its place on the disk, size and times are the same.
    What Python compiles and what begins with a dot is left out.

    Args:
        folder: An existing folder.

    Returns:
        64 hexadecimal digits.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if path.is_file() and not hidden:
            now = path.stat()
            found[name.as_posix()] = _file_key(
                path, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
            )
    return content_key(found)


@lru_cache(maxsize=4096)
def _file_key(path: Path, *state: int) -> str:
    """The SHA-256 of a file in this state."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
