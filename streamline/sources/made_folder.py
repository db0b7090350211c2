"""Folders of the cache that are made once: whole or not at all, by one process, checked when used.

Example::

    folder = made_folder(cache_dir() / "texts" / "mixture", lock="mixture", make=write_texts)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streamline.errors import AssetError
from streamline.files import cache_dir, ordinary_modes, sweep_of, temporary_folder
from streamline.kept import folder_damage, set_aside, write_list
from streamline.sharing.claims import held

__all__ = ["atomic_folder", "cache_lock", "made_folder"]

log = logging.getLogger(__name__)


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Hold the cache's claim of this name; other processes, also of other machines, wait.

    Args:
        name: What is being made, as a file name without a suffix.
    """
    with held(cache_dir() / "claims" / name, lambda: log.info("waiting for %s", name)):
        yield


def made_folder(target: Path, *, lock: str, make: Callable[[Path], None], below: str = "") -> Path:
    """A folder of the cache with the files that were made; made now if it is not there or damaged.

    A damaged one is set aside by name.

    Args:
        target: The folder.
        lock: What is being made, for :func:`cache_lock`.
        make: Fills an empty folder.
        below: Only files whose names within the folder begin with this are checked.

    Returns:
        ``target``.

    Raises:
        AssetError: If it is not there or damaged, and the cache cannot be written.
    """
    why = _reason(target, below)
    if why is None:
        return target
    try:
        with cache_lock(lock):
            now = _reason(target, below)
            if now is not None:
                if target.is_dir():
                    set_aside(target, now)
                sweep_of(target)
                with atomic_folder(target) as folder:
                    make(folder)
                    write_list(folder)
    except OSError as error:
        if _reason(target, below) is None:  # another process has made it at the same time
            return target
        raise AssetError(
            f"{target} cannot be used, {why}, and it cannot be made: {error.strerror or error}. "
            "Give a cache that can be written (STREAMLINE_CACHE) or has room."
        ) from error
    return target


def _reason(target: Path, below: str) -> str | None:
    """Why a folder has to be made; None if it need not be."""
    return folder_damage(target, below) if target.is_dir() else "it does not exist"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, renamed to it when the block ends without an error.

    All in it gets the modes that ``open`` and ``mkdir`` give, whatever wrote it.

    Args:
        target: The final name; must not exist yet.

    Yields:
        The folder to fill. If the block raises, it is removed and ``target`` never appears.
    """
    with temporary_folder(target) as temporary:
        yield temporary
        ordinary_modes(temporary)
        temporary.replace(target)
