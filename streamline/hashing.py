"""Keys made from content: of values, of files, of folders.

What decides a number is known by its content, never by a path or a name. A file is read once for
as long as it lies at the same place of the same disk with the same size and times; a file of the
hub's cache that is named by its own hash is not read at all.

Example::

    key = content_key(["piqa", 20, file_sha256(path)])
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamline import __version__
from streamline.files import cache_dir, sweep_of, write_json_atomic

__all__ = [
    "FORMAT",
    "NO_CHECKSUM",
    "checksum_in",
    "content_key",
    "file_hashes",
    "file_sha256",
    "folder_key",
    "program",
    "read_sha256",
    "with_checksum",
]

FORMAT = 6
"""Raised by a change of this project that changes numbers."""

NO_CHECKSUM = "streamline-sha256:" + "0" * 64
"""What stands in a file's metadata while its own checksum is made."""
_CHECKSUM = re.compile(rb"streamline-sha256:([0-9a-f]{64})")

_SHA256 = re.compile("[0-9a-f]{64}")
_LARGE = 1 << 30  # bytes; a larger file is hashed in pieces
_PIECE = 1 << 26  # bytes
_BLOCK = 1 << 20  # bytes that are read at once
_THREADS = min(8, os.cpu_count() or 1)
_WORTH_KEEPING = 1 << 24  # bytes; smaller files are read again by the next process
_SETTLED = 1_000_000_000  # nanoseconds after which a change gives a file another time
_known: dict[tuple[int | str, ...], str] = {}


def program() -> list[str | int]:
    """What this program is in the key of all that it computes and keeps."""
    return [__version__, FORMAT]


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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content.

    It is remembered while device, inode, size and the times of the last change of content and of
    inode are the same, for large files in the cache folder too; copying older times onto a file
    changes the last of these. A file that was changed just now is not remembered: it could change
    once more before the clock's next tick. A cache that cannot be written or read costs time alone.

    Args:
        path: An existing file; links are followed.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    return _hash(path.resolve(), read_sha256)


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """What stands for the content of several files, read side by side.

    It is a file's SHA-256; of one larger than 1 GiB, which one thread would read for long, the
    SHA-256 of the SHA-256 of each of its pieces of 64 MiB.

    Args:
        paths: Existing files.

    Returns:
        For each path, in order, 64 hexadecimal digits.

    Raises:
        OSError: If a file cannot be read.
    """
    wanted = list(paths)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return dict(zip(wanted, pool.map(_content_hash, wanted), strict=True))


def with_checksum(data: bytes, stop: int | None = None) -> tuple[bytes | memoryview, ...]:
    """The parts of a file that carries its own checksum: of all its bytes, with zeros in its place.

    Args:
        data: The file, with :data:`NO_CHECKSUM` in it.
        stop: Where what can hold that ends; the end of the file if None.
    """
    place = data.rindex(NO_CHECKSUM.encode("ascii"), 0, stop) + len(NO_CHECKSUM) - 64
    digest = hashlib.sha256(data).hexdigest().encode("ascii")
    return data[:place], digest, memoryview(data)[place + 64 :]


def checksum_in(data: bytes, stop: int | None = None) -> str | None:
    """The checksum that a file carries, 64 hexadecimal digits; None if it has no right one.

    Args:
        data: The file.
        stop: As in :func:`with_checksum`.
    """
    *_, found = [None, *_CHECKSUM.finditer(data, 0, len(data) if stop is None else stop)]
    if found is None:
        return None
    digest = hashlib.sha256(memoryview(data)[: found.start(1)])
    digest.update(b"0" * 64)
    digest.update(memoryview(data)[found.end(1) :])
    checksum = found.group(1).decode("ascii")
    return checksum if digest.hexdigest() == checksum else None


def folder_key(folder: Path, suffixes: Collection[str] = ()) -> str:
    """A name for what lies in a folder: its files' relative names and their content.

    What Python compiles and what begins with a dot is left out.

    Args:
        folder: An existing folder.
        suffixes: Only files that end so; all if none is named.

    Returns:
        64 hexadecimal digits.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        wanted = not suffixes or path.suffix in suffixes
        if wanted and not hidden and path.is_file():
            found[path] = name.as_posix()
    hashes = file_hashes(found)
    return content_key({name: hashes[path] for path, name in found.items()})


def _content_hash(path: Path) -> str:
    real = path.resolve()
    return _hash(real, read_sha256 if real.stat().st_size <= _LARGE else _sha256_of_pieces)


def _hash(real: Path, read: Callable[[Path], str]) -> str:
    """What a way to read makes of a file, which has no links in its path."""
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name  # what arrives from the hub is held against this name
    state = _state(real)
    if not 0 < state[-1] < time.time_ns() - _SETTLED:
        return read(real)
    key: tuple[int | str, ...] = (read.__name__, *state)
    if key not in _known:
        _known[key] = _remembered(real, state, read)
    return _known[key]


def _state(path: Path) -> tuple[int, ...]:
    """What is the same for as long as a file's content is the same."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _remembered(path: Path, state: tuple[int, ...], read: Callable[[Path], str]) -> str:
    """The hash of a file in this state, from the cache folder if it is a large one."""
    if state[2] < _WORTH_KEEPING:
        return read(path)
    known = [*state] if read is read_sha256 else [*state, "pieces"]
    memo = cache_dir() / "hashes" / f"{content_key(known)}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        found = json.loads(memo.read_text(encoding="utf-8"))
        if found["checksum"] == content_key([found["sha256"], *known]):
            return str(found["sha256"])
    digest = read(path)
    if _state(path) == state:  # else it is being written
        with suppress(OSError):  # a cache that is read-only or full
            sweep_of(memo)
            checksum = content_key([digest, *known])
            write_json_atomic(memo, {"path": str(path), "sha256": digest, "checksum": checksum})
    return digest


def read_sha256(path: Path) -> str:
    """SHA-256 of what a file holds, read now whatever its name says, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of_pieces(path: Path) -> str:
    def piece(start: int) -> bytes:
        digest, left = hashlib.sha256(), _PIECE
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            while left and (data := stream.read(min(left, _BLOCK))):
                digest.update(data)
                left -= len(data)
        return digest.digest()

    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        pieces = pool.map(piece, range(0, path.stat().st_size, _PIECE))
        return hashlib.sha256(b"".join(pieces)).hexdigest()
