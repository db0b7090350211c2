"""The list of commands that made a run's folder.

Example::

    with commanded(["--suite", "smoke"]):
        note_command(Path("out/smoke"))      # one more entry of out/smoke/commands.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from streamline import __version__
from streamline.files import write_json_atomic

__all__ = ["COMMANDS", "commanded", "note_command"]

COMMANDS = "commands.json"
_COMMAND: ContextVar[tuple[str, ...] | None] = ContextVar("command", default=None)


@contextmanager
def commanded(arguments: Sequence[str]) -> Iterator[None]:
    """Within it, :func:`note_command` knows the command that is being carried out."""
    token = _COMMAND.set(tuple(arguments))
    try:
        yield
    finally:
        _COMMAND.reset(token)


def note_command(folder: Path) -> None:
    """Add the command to the list of those that made a folder; nothing where there is none.

    Args:
        folder: The run's folder; its ``commands.json`` is a list of ``time`` (UTC), ``argv`` and
            ``version``, the oldest first.
    """
    arguments = _COMMAND.get()
    if arguments is None:
        return
    path = folder / COMMANDS
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": now, "argv": list(arguments), "version": __version__}
    write_json_atomic(path, [*before, entry])
