"""Progress of long work on the terminal: one bar with the time left, remarks above it."""

from __future__ import annotations

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

__all__ = ["Bar"]

_LOG_SECONDS = 20.0


class Bar:
    """Shows a :class:`streamline.progress.Progress` on standard error; a context manager.

    Where standard error is no terminal, each stage and remark is one line, and a long stage says
    every 20 seconds how far it has come.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Bar:
        """Start to draw."""
        from streamline.environment import hush

        hush()
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
        self._stage = name
        self._began = self._told = time.monotonic()
        if not self._console.is_terminal:
            self.say(name)

    def step(self, done: float, total: float, message: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, message=message)
        if not self._console.is_terminal and time.monotonic() - self._told >= _LOG_SECONDS:
            self._told = time.monotonic()
            left = (self._told - self._began) * (total - done) / done if done else 0.0
            share = f"{done / total:.0%}" if total else "-"
            self.say(f"{self._stage}: {share}, about {left:.0f} s left {message}".rstrip())

    def say(self, message: str) -> None:
        """Print a remark above the bar, taken literally."""
        self._console.print(message, markup=False)
