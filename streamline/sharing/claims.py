"""Claims on what several processes share in a folder, on one machine or over a network.

A claim is a file that is made only where there is none (``O_EXCL``): network file systems keep to
that, as they do not to locks. It says who holds it, and its holder changes it every few seconds.
Who waits for it compares what it sees, never two machines' clocks: a claim that has not changed
for a while has no holder any more and is taken over. Of a holder on the same machine it is
known at once whether its process lives.

A claim that is taken over is followed by a file with the next number, so that two that wait cannot
both have it, and one whose holder only slept is not written over.

Example::

    with held(out / "cache" / "calibration"):       # others wait
        ...

    claim = Claim(out / ".running")
    if not claim.acquire_unless_held():              # somebody works there
        ...
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["BEAT_S", "PATIENCE_S", "Claim", "held"]

BEAT_S = 5.0
"""Seconds between two changes of a claim that is held."""
PATIENCE_S = 60.0
"""Seconds without a change after which a claim's holder counts as gone."""

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.02, 1.0  # between two looks of one that waits

log = logging.getLogger(__name__)


class Claim:
    """A claim that this process may hold; not for several threads at a time.

    Args:
        path: What is claimed: the claim's file is named like it and ends in ``.lock``. Its folder
            is made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = re.compile(re.escape(path.name) + r"(?:\.(\d+))?\.lock")
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._moved: set[Path] = set()
        self._file: Path | None = None
        self._stream = -1
        self._beats = 0

    @property
    def holds(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    def attempt(self) -> bool:
        """Take it if nobody has it, as far as is known by now; True where it is held then."""
        if self.holds:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = self._there()
        if any([not self._is_dead(file) for file in there]):  # each is looked at
            return False
        return self._take(1 + max(there.values(), default=-1), there)

    def acquire(self, waits: Callable[[], None] | None = None) -> None:
        """Take it, after whoever has it.

        Args:
            waits: Called once if there is somebody to wait for.
        """
        pause = _FIRST_LOOK_S
        while not self.attempt():
            if waits is not None:
                waits()
                waits = None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_LOOK_S)

    def acquire_unless_held(self) -> bool:
        """Take it, or find that its holder lives; that may take as long as the patience."""
        pause = _FIRST_LOOK_S
        while not self.attempt():
            if any(self._lives(file) for file in self._there()):
                return False
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_LOOK_S)
        return True

    def is_held(self) -> bool:
        """Whether somebody has it and lives, found without taking it; as long as that may take."""
        pause = _FIRST_LOOK_S
        while there := self._there():
            if all([self._is_dead(file) for file in there]):
                return False
            if any(self._lives(file) for file in there):
                return True
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_LOOK_S)
        return False

    def release(self) -> None:
        """Give it up; nothing if another process has taken it over."""
        if self._file is None:
            return
        _HEART.let_go(self)
        if self._is_mine():
            self._file.unlink(missing_ok=True)
        os.close(self._stream)
        self._file, self._stream = None, -1

    def beat(self) -> bool:
        """Show that its holder lives; False if another process has taken it over."""
        if not self._is_mine():
            return False
        self._beats += 1
        os.pwrite(self._stream, self._content(), 0)
        os.fsync(self._stream)
        return True

    def _there(self) -> dict[Path, int]:
        """The claim's files with their numbers."""
        folder = self.path.parent
        paths = folder.iterdir() if folder.is_dir() else ()
        found = ((path, self._names.fullmatch(path.name)) for path in paths)
        return {path: int(match.group(1) or 0) for path, match in found if match}

    def _take(self, number: int, dead: dict[Path, int]) -> bool:
        """Make the file of a number, unless somebody else comes at the same time."""
        name = f"{self.path.name}.{number}.lock" if number else f"{self.path.name}.lock"
        file = self.path.with_name(name)
        try:
            self._stream = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        self._file, self._beats = file, 0
        try:
            os.write(self._stream, self._content())
        except OSError as error:  # it names no file
            self.release()
            raise OSError(error.errno, error.strerror, str(file)) from error
        if set(self._there()) - {file, *dead}:
            self.release()
            return False
        for old in dead:
            log.info("%s is taken over: whoever had it is gone", old)
            old.unlink(missing_ok=True)
        self._seen.clear()
        self._moved.clear()
        _HEART.keep(self)
        return True

    def _content(self) -> bytes:
        """Who holds it and how often it has said so; as long each time."""
        return json.dumps(_this_process() | {"beats": f"{self._beats:012d}"}).encode()

    def _is_mine(self) -> bool:
        assert self._file is not None
        try:
            there, mine = self._file.stat(), os.fstat(self._stream)
        except OSError:  # it is not there, or a file system has forgotten a file that is gone
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def _is_dead(self, file: Path) -> bool:
        """Whether the holder of a file is known to be gone; notes what is seen of it."""
        try:
            content = file.read_bytes()
        except OSError:  # given up meanwhile: the next look shows it
            return False
        now = time.monotonic()
        before, since = self._seen.setdefault(file, (content, now))
        if content != before:
            self._seen[file] = content, now
            self._moved.add(file)
            return False
        runs = _runs(content)
        return not runs if runs is not None else now - since >= PATIENCE_S

    def _lives(self, file: Path) -> bool:
        """Whether the holder of a file has been seen to live."""
        content, _ = self._seen.get(file, (b"", 0.0))
        return file in self._moved or _runs(content) is True


@contextmanager
def held(path: Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the claim on something; whoever has it is waited for.

    Args:
        path: What is claimed, as for :class:`Claim`.
        waits: Called once if there is somebody to wait for.
    """
    claim = Claim(path)
    claim.acquire(waits)
    try:
        yield
    finally:
        claim.release()


class _Heart:
    """Changes all claims that this process holds, on a thread of its own while there are any."""

    def __init__(self) -> None:
        self._claims: list[Claim] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._none = threading.Event()

    def keep(self, claim: Claim) -> None:
        with self._lock:
            self._claims.append(claim)
            if self._thread is None or not self._thread.is_alive():
                self._none = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._none,), daemon=True)
                self._thread.start()

    def let_go(self, claim: Claim) -> None:
        with self._lock:
            if claim in self._claims:
                self._claims.remove(claim)
            if not self._claims and self._thread is not None:
                self._none.set()
                self._thread = None

    def _run(self, over: threading.Event) -> None:
        while not over.wait(BEAT_S):
            with self._lock:
                for claim in list(self._claims):
                    with suppress(OSError):  # a disk that is full or away for a while
                        if not claim.beat():
                            log.warning(
                                "%s was taken over: this process showed no life for so long that "
                                "another one goes on in its place",
                                claim.path,
                            )
                            self._claims.remove(claim)


_HEART = _Heart()


def _this_process() -> dict[str, Any]:
    """This process, as a claim names it."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """What tells this machine, and the processes that are seen on it, from others."""
    parts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(place)
        with suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None if it is not there or nobody says."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _runs(content: bytes) -> bool | None:
    """Whether the process that a claim names runs; None where that cannot be known here."""
    try:
        holder = json.loads(content)
        if holder["machine"] != _machine() or holder["started"] is None:
            return None
        return bool(_started(int(holder["pid"])) == holder["started"])
    except (ValueError, LookupError, TypeError):  # it is just being written
        return None
