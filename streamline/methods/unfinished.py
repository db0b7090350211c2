"""What a long search has found so far, kept so that a killed run goes on there.

What it has run so far is kept with it, so that a search costs the same, killed or not.

Whoever runs a method's code says where its state may be kept; without that nothing is kept.

Example::

    with resuming(file):                        # around a method's code
        state = unfinished() or {"round": 0}    # in the method
        keep_unfinished(state)                  # after each round
    forget_unfinished(file)                     # once what it found is kept elsewhere
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.engine.meter import Meter, current
from streamline.kept import kept_json, write_json

__all__ = ["forget_unfinished", "keep_unfinished", "resuming", "unfinished"]

_FILE: ContextVar[Path | None] = ContextVar("unfinished", default=None)


@contextmanager
def resuming(file: Path) -> Iterator[None]:
    """Let code keep what it has found so far.

    Args:
        file: Where; its name holds everything that decides what the code finds. Who keeps what
            comes of it removes the file.
    """
    token = _FILE.set(file)
    try:
        yield
    finally:
        _FILE.reset(token)


def forget_unfinished(file: Path) -> None:
    """Let go of what code has kept, once what it found in the end is kept elsewhere."""
    if leads():
        file.unlink(missing_ok=True)


def unfinished() -> Any | None:
    """What a run that was killed had kept here, or None; a damaged file is set aside."""
    file = _FILE.get()
    kept = None if file is None else shared(lambda: kept_json(file))
    if kept is None:
        return None
    if (meter := current()) is not None:
        meter.add(kept["flops"], kept["seconds"])
    return kept["found"]


def keep_unfinished(state: Any) -> None:
    """Keep what was found so far, in place of what was kept before.

    Args:
        state: Anything JSON can hold, without NaN or infinities. A disk that does not take it
            costs the work of a later kill, no more.
    """
    file = _FILE.get()
    if file is None or not leads():
        return
    try:
        meter = current() or Meter(flops=None)
        write_json(file, {"found": state, "flops": meter.flops, "seconds": meter.seconds})
    except OSError:
        return
