"""Standard output and error that never end a run: a reader that leaves, an encoding without a sign.

Example::

    with lasting_streams():
        print("…")          # "?" where the terminal has ASCII alone; nothing where nobody reads
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

__all__ = ["is_unicode", "lasting_streams"]


class _Lasting:
    """A text stream whose reader may leave: what is written then goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; all of it counts as written."""
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        """From here on the null device reads, also what the stream still holds."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it, standard output and error outlive their readers and show ``?`` for other signs."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if stream is not None and not is_unicode(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = (
        stream if stream is None else cast("TextIO", _Lasting(stream)) for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def is_unicode(stream: TextIO) -> bool:
    """Whether a stream has every sign."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
