"""The list of commands that made a run's folder.

Example::

    with commanded(["--suite", "smoke"]):
        note_command(Path("out/smoke"))      # one more entry of out/smoke/commands.json
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamline import __version__
from streamline.files import write_json_atomic

__all__ = ["COMMANDS", "commanded", "commands_of", "note_command"]

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
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": now, "argv": list(arguments), "version": __version__}
    write_json_atomic(folder / COMMANDS, [*_entries(folder), entry])


def commands_of(folder: Path) -> list[str]:
    """The command lines that made a folder, each once, the oldest first; empty if not kept."""
    lines = [shlex.join(["streamline-bench", *entry["argv"]]) for entry in _entries(folder)]
    return list(dict.fromkeys(lines))


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((folder / COMMANDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    whole = isinstance(entries, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("argv"), list)
        and all(isinstance(part, str) for part in entry["argv"])
        for entry in entries
    )
    return entries if whole else []
