"""The list of commands that made a run's folder.

Example::

    with commanded(["--suite", "smoke"]):
        note_command(Path("out/smoke"))      # one more entry of out/smoke/commands.json
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamline import __version__
from streamline.files import write_json_atomic
from streamline.progress import clock
from streamline.report.names import COMMANDS

__all__ = ["checkout", "commanded", "commands_of", "gather_commands", "made_with", "note_command"]


@dataclass
class _Command:
    """A command that is being carried out, and the entries that were made of it by folder."""

    arguments: tuple[str, ...]
    start: float
    noted: dict[Path, dict[str, Any]] = field(default_factory=dict)


_COMMAND: ContextVar[_Command | None] = ContextVar("command", default=None)


@contextmanager
def commanded(arguments: Sequence[str]) -> Iterator[None]:
    """Within it, :func:`note_command` knows the command; at its end the entries get its seconds."""
    command = _Command(tuple(arguments), time.monotonic())
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)
        seconds = round(time.monotonic() - command.start, 1)
        for folder, entry in command.noted.items():
            entries = _entries(folder)
            if entry in entries:
                ended = [one | {"seconds": seconds} if one == entry else one for one in entries]
                with suppress(OSError):  # a full disk: they stay unknown
                    write_json_atomic(folder / COMMANDS, ended)


def note_command(folder: Path) -> None:
    """Add the command to the list of those that made a folder; nothing where there is none.

    Args:
        folder: The run's folder; its ``commands.json`` is a list of ``time`` (UTC), ``argv``,
            ``version``, ``commit`` (null where no checkout is run) and ``seconds`` (null until the
            command ends, and where it was killed), the oldest first.
    """
    command = _COMMAND.get()
    if command is None:
        return
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(command.arguments),
        "version": __version__,
        "commit": checkout(),
        "seconds": None,
    }
    write_json_atomic(folder / COMMANDS, [*_entries(folder), entry])
    command.noted[folder] = entry


def gather_commands(folder: Path, parts: Sequence[Path]) -> None:
    """Add the commands that are listed in other folders to those of a folder, each once, by time.

    Args:
        folder: Receives them.
        parts: The others; they stay as they are.
    """
    entries = _entries(folder)
    entries += [one for part in parts for one in _entries(part) if one not in entries]
    if entries:
        entries.sort(key=lambda entry: str(entry.get("time") or ""))
        write_json_atomic(folder / COMMANDS, entries)


def commands_of(folder: Path) -> list[str]:
    """The command lines that made a folder, each once, the oldest first; empty if not kept."""
    lines = [shlex.join(["streamline-bench", *entry["argv"]]) for entry in _entries(folder)]
    return list(dict.fromkeys(lines))


def made_with(folder: Path) -> dict[str, str]:
    """When a folder's commands were given, the code that carried them out, and how long they took.

    Returns:
        What is kept of it. The time is that of all commands, one after the other; of those that
        were killed none is known.
    """
    entries = _entries(folder)
    times = [str(entry["time"]) for entry in entries if entry.get("time")]
    commits = [str(entry["commit"]) for entry in entries if entry.get("commit")]
    seconds = [one for entry in entries if isinstance(one := entry.get("seconds"), int | float)]
    least = "" if len(seconds) == len(entries) else "at least "
    found = {
        "first command": times[:1],
        "last command": times[1:][-1:],
        "commit": commits,
        "time": [f"{least}{clock(sum(seconds))}"] if seconds else [],
    }
    return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items() if values}


def checkout() -> str | None:
    """The commit of the checkout that is run, marked where files differ from it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not its owner
        return None


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
