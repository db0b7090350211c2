"""What a run keeps to go on from, in files that carry their own checksum.

Each artefact is one file, JSON or safetensors, and is checked against the checksum in it when it
is read; a folder of files of other forms has a list of them with their hashes. What does not pass
is not used: :func:`kept_json` and :func:`kept_tensors` set it aside by name, say so, and give None
as if it had never been there, so that it is made again.

Example::

    write_json(path, {"sum": 12.5})
    found = kept_json(path)         # None if it is not there or is damaged
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import StreamlineError
from streamline.files import write_bytes_atomic, write_json_atomic
from streamline.hashing import (
    NO_CHECKSUM,
    checksum_in,
    content_key,
    file_hashes,
    with_checksum,
)
from streamline.reading import safetensors_header

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Damaged",
    "folder_damage",
    "kept_json",
    "kept_tensors",
    "read_json",
    "read_list",
    "read_tensors",
    "set_aside",
    "write_json",
    "write_list",
    "write_tensors",
]

log = logging.getLogger(__name__)

_LIST = ".files.json"  # in a folder: its files and their hashes


class Damaged(StreamlineError):
    """A kept file is not what was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is damaged: {why}. Remove it; what it held is made again by the next run."
        )
        self.path = path
        self.why = why


def write_json(path: Path, obj: Any) -> None:
    """Keep a value with its checksum, whole or not at all.

    Args:
        path: The final name; parent folders are made.
        obj: Anything ``json`` can write, without NaN or infinities.

    Raises:
        OSError: If it cannot be written.
    """
    write_json_atomic(path, {"checksum": content_key(obj), "value": obj})


def read_json(path: Path) -> Any:
    """A kept value.

    Raises:
        FileNotFoundError: If it is not there.
        Damaged: If it is not what was written.
    """
    data = path.read_bytes()
    try:
        found = json.loads(data.decode("utf-8"))
        value, checksum = found["value"], found["checksum"]
        if content_key(value) != checksum:
            raise Damaged(path, "its content does not have its checksum")
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(path, _reason(data, "not the JSON that was written")) from error
    return value


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Keep tensors as safetensors with their checksum, whole or not at all.

    Args:
        path: The final name; parent folders are made.
        tensors: Tensors of any shape, dtype and device; none shares memory with another.
        metadata: What else to keep, as texts.

    Raises:
        OSError: If it cannot be written.
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(own, {**(metadata or {}), "checksum": NO_CHECKSUM})
    write_bytes_atomic(path, *with_checksum(data, safetensors_header(data)[0]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Kept tensors, on the CPU, and their metadata.

    Raises:
        FileNotFoundError: If they are not there.
        Damaged: If they are not what was written.
    """
    from safetensors.torch import load

    data = path.read_bytes()
    try:
        stop, metadata = safetensors_header(data)
        if metadata.pop("checksum", None) is None or checksum_in(data, stop) is None:
            raise Damaged(path, "its content does not have its checksum")
        return load(data), metadata
    except ValueError as error:
        raise Damaged(path, _reason(data, "not the safetensors that were written")) from error


def kept_json(path: Path) -> Any | None:
    """A kept value, or None if it is not there; a damaged one is set aside."""
    return _kept(path, read_json)


def kept_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Kept tensors and their metadata, or None; damaged ones are set aside."""
    return _kept(path, read_tensors)


def write_list(folder: Path) -> None:
    """Keep a list of a folder's files with their hashes in it, for :func:`folder_damage`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _LIST]
    hashes = file_hashes(files)
    write_json(
        folder / _LIST, {path.relative_to(folder).as_posix(): hashes[path] for path in files}
    )


def read_list(folder: Path) -> dict[str, str]:
    """A folder's files and their hashes, as they were when they were listed.

    Raises:
        FileNotFoundError: If it has no list.
        Damaged: If the list is damaged.
    """
    found: dict[str, str] = read_json(folder / _LIST)
    return found


def folder_damage(folder: Path, below: str = "") -> str | None:
    """Why the files of a folder are not those that were listed, or None if they are.

    Args:
        folder: One with a list, from :func:`write_list`.
        below: Only files whose names within the folder begin with this are checked.
    """
    try:
        listed = {name: key for name, key in read_list(folder).items() if name.startswith(below)}
    except FileNotFoundError:
        return "it has no list of its files"
    except Damaged as error:
        return f"the list of its files: {error.why}"
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    hashes = file_hashes(folder / name for name in listed)
    changed = [name for name, key in listed.items() if hashes[folder / name] != key]
    return f"{changed[0]} is not what was written" if changed else None


def set_aside(path: Path, why: str) -> Path:
    """Rename a damaged file or folder so that it is made again, and say so.

    Args:
        path: A file or folder.
        why: What is wrong with it.

    Returns:
        Its new name, ending in ``.damaged``; what was set aside before is replaced. So it is also
        where another process was faster.

    Raises:
        Damaged: If it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if aside.is_dir():
            shutil.rmtree(aside)
        path.replace(aside)
    except FileNotFoundError:
        return aside
    except OSError as error:
        raise Damaged(path, f"{why}, and it cannot be set aside ({error.strerror})") from error
    log.warning("%s is damaged (%s): set aside as %s, made again", path, why, aside.name)
    return aside


def _kept(path: Path, read: Callable[[Path], Any]) -> Any | None:
    try:
        return _fresh(read, path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        set_aside(path, error.why)
        return None


def _fresh(read: Callable[[Path], Any], path: Path) -> Any:
    """What is read; once more where another machine replaced the file just then."""
    try:
        return read(path)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return read(path)


def _reason(data: bytes, otherwise: str) -> str:
    return otherwise if data else "it is empty"
