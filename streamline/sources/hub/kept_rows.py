"""Rows of a data set on the hub that are read in order, and kept as they are read.

What was read of a stream lies in the cache in pieces with their own checksums, under the commit
and the selection: another run, offline too, begins with them and reads on where they end. A
connection that ends is opened again at the row where it ended.

Example::

    rows = kept_rows("allenai/c4", "en", split="train", columns=("text",), seed=0)
    first = list(itertools.islice(rows, 1000))
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from streamline.errors import StreamlineError
from streamline.files import sweep
from streamline.hashing import content_key
from streamline.kept import kept_json, write_json
from streamline.sources.hub import failures
from streamline.sources.hub.commits import dataset_commit, kept_folder
from streamline.sources.hub.rows import data_explained, load_rows, require_fields

__all__ = ["kept_rows"]

log = logging.getLogger(__name__)

_ROWS, _CHARS = 10_000, 1 << 23  # of a piece, at most about so many
_DEAD_S = 3600.0  # after which nobody is still writing a piece
Row = dict[str, Any]


def kept_rows(
    repository: str,
    config: str | None = None,
    *,
    split: str,
    columns: Sequence[str],
    revision: str | None = None,
    seed: int | None = None,
    buffer: int = 10_000,
) -> Iterator[Row]:
    """Rows of a split in a fixed order, read from the hub no further than they are asked for.

    Args:
        repository: Its id.
        config: Its configuration, or None for the only one.
        split: Split.
        columns: Fields that are read; JSON values.
        revision: Commit; None for that of the main branch, or of what is kept where the hub cannot
            be asked.
        seed: Seed of a shuffle; None for the order of the set.
        buffer: Rows that a stream is shuffled within.

    Yields:
        One row after the other.

    Raises:
        AssetError: If more is asked for than is kept, and it cannot be read.
    """
    commit = revision or dataset_commit(repository, kept=True)
    folder = None
    if commit is not None:
        order = None if seed is None else [seed, buffer]
        selection = content_key([config, split, sorted(columns), order])
        folder = kept_folder(repository) / commit / selection[:16]
        sweep(folder, _DEAD_S)
    start = 0
    while folder is not None:
        piece = kept_json(_piece(folder, start))
        if piece is None:
            break
        yield from piece["rows"]
        start += len(piece["rows"])
        if piece["last"]:
            return
    with data_explained(repository, config, split, commit):
        rows = _read(repository, config, split, columns, commit, seed, buffer, start)
        yield from rows if folder is None else _keeping(rows, folder, start)


def _keeping(rows: Iterator[Row], folder: Path, start: int) -> Iterator[Row]:
    """Rows as they come; they are kept piece by piece, the last piece when no more is asked for."""
    piece: list[Row] = []
    size, last = 0, False
    try:
        for row in rows:
            piece.append(row)
            yield row
            size += sum(len(value) for value in row.values() if isinstance(value, str))
            if size >= _CHARS or len(piece) >= _ROWS:
                _keep(folder, start, piece, last=False)
                start, piece, size = start + len(piece), [], 0
        last = True
    finally:
        if piece or last:
            _keep(folder, start, piece, last=last)


def _keep(folder: Path, start: int, rows: list[Row], *, last: bool) -> None:
    try:
        write_json(_piece(folder, start), {"rows": rows, "last": last})
    except OSError as error:
        log.warning("what is read of a text cannot be kept in %s: %s", folder, error)


def _piece(folder: Path, start: int) -> Path:
    return folder / f"{start:012d}.json"


def _read(
    repository: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    commit: str | None,
    seed: int | None,
    buffer: int,
    start: int,
) -> Iterator[Row]:
    """Rows of the hub from one on; a stream that ends too early is opened again where it ended."""
    waits = iter(failures.WAITS)
    while True:
        try:
            rows = load_rows(repository, config, split=split, revision=commit, streaming=True)
            if seed is not None:
                rows = rows.shuffle(seed=seed, buffer_size=buffer)
            for row in rows.skip(start) if start else rows:
                require_fields(row, columns, repository)
                yield {name: row[name] for name in columns}
                start += 1
                waits = iter(failures.WAITS)
            return
        except StreamlineError:  # tried again already
            raise
        except Exception as error:  # of the connection, or of what reads it
            wait = next(waits, None)
            if wait is None or not failures.worth_another_try(error):
                raise
            log.warning("data set %s: %s at row %d; tried again", repository, error, start)
            time.sleep(wait)
