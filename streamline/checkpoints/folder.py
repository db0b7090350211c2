"""The folder of a checkpoint: it appears whole or not at all, and nobody else's is touched.

Example:
    with appearing(target_folder("~/out/short")) as folder:
        model.save_pretrained(folder)
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from streamline.errors import ConfigError
from streamline.files import ordinary_modes, remains_of, temporary_folder

__all__ = ["CLAIM", "appearing", "require_free", "target_folder"]

#: Lies, locked, in a folder that is being written; one that nobody locks was left by a killed save.
CLAIM = ".unfinished-checkpoint"


def target_folder(given: str | Path) -> Path:
    """Where a checkpoint is to appear, with ``~`` expanded.

    Args:
        given: As a user wrote it.

    Raises:
        ConfigError: If it names no folder of its own: nothing, a home that is unknown, or the root.
    """
    try:
        folder = Path(given).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(given)!r} cannot be a checkpoint's folder: {error}") from None
    if not str(given).strip() or folder.resolve() == folder.resolve().parent:
        raise ConfigError(
            f"a checkpoint cannot be written to {str(given)!r}; name a folder that is to be made, "
            "such as out/checkpoint"
        )
    return folder


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: If it exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another folder or remove it")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, which takes its name when the block ends without an error.

    What killed saves of the same target left is removed first. All in it gets the modes that
    ``open`` and ``mkdir`` give, whatever wrote it.

    Args:
        target: Must not exist or be an empty folder.

    Yields:
        The folder to fill. If the block raises, it is removed and ``target`` never appears.

    Raises:
        ConfigError: If the target holds something, before or after.
    """
    require_free(target)
    final = target.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    try:
        with temporary_folder(final) as temporary, FileLock(temporary / CLAIM):
            yield temporary
            require_free(target)
            ordinary_modes(temporary)
            temporary.replace(final)
            (final / CLAIM).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(final)  # not the source of a copy, or nothing
        raise


def _sweep(target: Path) -> None:
    """Remove the remains of killed saves of a target, known by name, claim and a lock let go."""
    for path in remains_of(target):
        if not (path / CLAIM).is_file():
            with suppress(OSError):
                path.rmdir()  # made, and nothing more
            continue
        try:
            with FileLock(path / CLAIM, timeout=0):
                shutil.rmtree(path)
        except (Timeout, FileNotFoundError):
            continue  # another process is writing it, or has removed it
