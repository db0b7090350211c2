"""The list of commands that made a run's folder.

Example::

    with commanded(["--suite", "smoke"]):
        note_command(Path("out/smoke"))      # one more entry of out/smoke/commands.json
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamline import __version__
from streamline.files import write_json_atomic

__all__ = ["COMMANDS", "commanded", "commands_of", "gather_commands", "made_with", "note_command"]

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
        folder: The run's folder; its ``commands.json`` is a list of ``time`` (UTC), ``argv``,
            ``version`` and ``commit`` (null where no checkout is run), the oldest first.
    """
    arguments = _COMMAND.get()
    if arguments is None:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": now, "argv": list(arguments), "version": __version__, "commit": _commit()}
    write_json_atomic(folder / COMMANDS, [*_entries(folder), entry])


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
    """When a folder's commands were given, and the code that carried them out, where kept."""
    entries = _entries(folder)
    times = [str(entry["time"]) for entry in entries if entry.get("time")]
    commits = [str(entry["commit"]) for entry in entries if entry.get("commit")]
    found = {"first command": times[:1], "last command": times[1:][-1:], "commit": commits}
    return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items() if values}


def _commit() -> str | None:
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
