"""Progress of long work: on a terminal one bar with the time left, in a log a line now and then."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from streamline.progress import clock

__all__ = ["Bar", "Log", "progress_display"]


def progress_display() -> Bar | Log:
    """The display that fits standard error: a bar on a terminal, else a log."""
    from streamline.environment import hush

    hush()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    return Bar(console) if console.is_terminal else Log(console)


class Bar:
    """Shows a :class:`streamline.progress.Progress` as one bar; a context manager.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, also after an error."""
        self._progress.stop()

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a new bar in place of the last one."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, message="")

    def step(self, done: float, total: float, message: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, message=message)

    def say(self, message: str) -> None:
        """Print a remark above the bar, taken literally."""
        self._console.print(message, markup=False)


class Log:
    """Shows a :class:`streamline.progress.Progress` as lines; a context manager.

    A stage that lasts is named once, and then says how far it is, at first every ``seconds`` and
    more seldom the longer it lasts. That happens on a thread of its own, so that work which tells
    nothing is not taken for dead.

    Args:
        console: Where to print.
        seconds: Time between the first lines of a stage.
    """

    def __init__(self, console: Console, seconds: float = 20.0) -> None:
        self._console = console
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._lock = threading.Lock()
        self.stage("")

    def __enter__(self) -> Log:
        """Start to watch the time."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, also after an error."""
        self._over.set()
        self._thread.join()

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a stage; it is named when it has lasted a little."""
        with self._lock:
            self._stage = name
            self._state: tuple[float, float | None, str] = (0.0, total, "")
            self._first: tuple[float, float] | None = None  # when it first spoke, and how far then
            self._began = time.monotonic()
            self._next = self._seconds / 20
            self._named = False

    def step(self, done: float, total: float, message: str = "") -> None:
        """Note how far the stage has come."""
        with self._lock:
            self._state = (done, total, message)
            self._first = self._first or (time.monotonic(), done)

    def say(self, message: str) -> None:
        """Print a remark, taken literally."""
        self._console.print(message, markup=False)

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / 20):
            with self._lock:
                age = time.monotonic() - self._began
                line = self._line(age) if self._stage and age >= self._next else None
            if line is not None:
                self.say(line)

    def _line(self, age: float) -> str:
        """The stage's name, or how far it is; and when to speak next."""
        if not self._named:
            self._named, self._next = True, self._seconds
            return self._stage
        self._next = age + max(self._seconds, age / 10)
        done, total, message = self._state
        parts = [f"{done:,.0f}/{total:,.0f}"] if total else []
        parts.append(f"{clock(age)} so far")
        if total and self._first is not None and done > self._first[1]:
            since, before = self._first  # what an earlier process had done says nothing of speed
            rate = (done - before) / (self._began + age - since)
            parts.append(f"about {clock((total - done) / rate)} left")
        return f"{self._stage}: {', '.join(parts)} {message}".rstrip()
