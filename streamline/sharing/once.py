"""What several processes of one run need, and one of them makes.

Example::

    with sharing(out / "shards" / "claims"):
        ...
        with turn("calibration-0123"):      # one at a time; the others find what it has made
            found = kept(place) or made(place)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

from streamline.sharing.claims import Claim, held

__all__ = ["shared_claim", "sharing", "turn"]

_FOLDER: ContextVar[Path | None] = ContextVar("folder of claims", default=None)


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Within it other processes make the same things.

    Args:
        folder: Where all of them put their claims.
    """
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


@contextmanager
def turn(name: str, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Within it no other process makes the same; look first whether it is made by now.

    Args:
        name: What is made, as a file name.
        waits: Called once if another process is making it.
    """
    folder = _FOLDER.get()
    with nullcontext() if folder is None else held(folder / name, waits):
        yield


def shared_claim(name: str) -> Claim | None:
    """The claim on something that other processes make too; None where there are none."""
    folder = _FOLDER.get()
    return None if folder is None else Claim(folder / name)
