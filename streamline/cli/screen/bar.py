"""Progress of long work: on a terminal a few lines that move, in a log a line now and then.

Both show the same: one line for the whole of the work with the time left, where the work declares
which portion of it a stage is (:func:`streamline.progress.portions`), one for the stage, and what
the stage reports, such as losses, below.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamline.cli.screen.tracker import Tracker
from streamline.distributed.team import follows
from streamline.progress import clock

__all__ = ["Bar", "Log", "progress_display"]

_LONGEST_SILENCE = 15  # of a log, in times of its first one


def progress_display(title: str = "") -> Bar | Log:
    """The display that fits standard error: a bar on a terminal, else a log.

    Args:
        title: What the whole is, such as "19 cells of opt-1.3b".
    """
    from streamline.environment import hush

    hush()
    console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=follows())
    kind = Bar if console.is_terminal else Log
    return kind(console, title)


class Bar:
    """Shows a :class:`streamline.progress.Progress` as moving lines; a context manager.

    Args:
        console: Where to draw.
        title: What the whole is.
    """

    def __init__(self, console: Console, title: str = "") -> None:
        self._console, self._title = console, title
        self._tracker = Tracker()
        self._live = Live(console=console, transient=True, get_renderable=self._lines)

    def __enter__(self) -> Bar:
        """Start to draw."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the lines away, also after an error."""
        self._live.stop()

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a stage in place of the last one."""
        self._tracker.stage(name, total)

    def step(self, done: float, total: float, message: str = "") -> None:
        """Move the bars."""
        self._tracker.step(done, total, message)
        if (warning := self._tracker.warning()) is not None:
            self.say(warning)

    def say(self, message: str) -> None:
        """Print a remark above the bars, without markup."""
        self._console.print(message, markup=False)

    def _lines(self) -> RenderableType:
        now, at = time.monotonic(), self._tracker.state
        table = Table.grid(expand=True, padding=(0, 1, 0, 0))
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(width=14 if self._console.width >= 60 else 4)
        table.add_column(width=5, justify="right")
        table.add_column(min_width=17, no_wrap=True)
        if at.whole is not None:
            self._row(table, self._title, at.whole, at.age(now), at.whole_left(now))
        if at.name:
            self._row(table, at.name, at.fraction, now - at.began, at.left(now))
        below = [Padding(Text(at.message, style="dim"), (0, 0, 0, 2))] if at.message else []
        # A terminal that echoes ^C at the end of a full line would move all lines by one.
        return Constrain(Group(table, *below), self._console.width - len("^C") - 1)

    @staticmethod
    def _row(
        table: Table, name: str, fraction: float | None, age: float, left: float | None
    ) -> None:
        bar = ProgressBar(total=1.0, completed=fraction or 0.0)
        percent = "" if fraction is None else f"{100 * fraction:.0f} %"
        times = _digits(age) if left is None else f"{_digits(age)}, {_digits(left)} left"
        table.add_row(Text(name), bar, percent, times)


def _digits(seconds: float) -> str:
    """A duration as narrow as it can be: ``0:07``, ``12:30``, ``2:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Log:
    """Shows a :class:`streamline.progress.Progress` as lines; a context manager.

    A stage that lasts is named once, then reports how far it is, more and more seldom, and at last
    how long it took. That happens on a thread of its own, so that work which reports nothing is not
    taken for dead.

    Args:
        console: Where to print.
        title: What the whole is.
        seconds: Time until a stage first reports how far it is.
    """

    def __init__(self, console: Console, title: str = "", seconds: float = 20.0) -> None:
        self._console, self._title, self._seconds = console, title, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._lock = threading.Lock()
        self._tracker = Tracker()
        self._named, self._next, self._message = False, seconds / 20, ""

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
        if error is None:
            self._end()

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a stage; it is named when it has lasted a little."""
        with self._lock:
            self._end()
            self._tracker.stage(name, total)
            self._named, self._next, self._message = False, self._seconds / 20, ""

    def step(self, done: float, total: float, message: str = "") -> None:
        """Note how far the stage has come."""
        with self._lock:
            self._tracker.step(done, total, message)
            warning = self._tracker.warning()
        if warning is not None:
            self.say(warning)

    def say(self, message: str) -> None:
        """Print a remark, without markup."""
        self._console.print(message, markup=False)

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / 20):
            with self._lock:
                age = time.monotonic() - self._tracker.state.began
                if self._tracker.state.name and age >= self._next:
                    self._speak(age)

    def _speak(self, age: float) -> None:
        """Name the stage or report how far it is, and set the time of the next report."""
        at, now = self._tracker.state, time.monotonic()
        if not self._named:
            self._named, self._next = True, self._seconds
            if self._title:  # once, before the first stage
                self.say(self._title)
                self._title = ""
            self.say(at.name)
            return
        self._next = age + min(age, _LONGEST_SILENCE * self._seconds)
        parts = [f"{at.done:,.0f}/{at.total:,.0f}"] if at.total else []
        parts.append(f"{clock(age)} so far")
        left = at.left(now)
        if left is not None:
            parts.append(f"about {clock(left)} left")
        line = f"{at.name}: {', '.join(parts)}"
        left = at.whole_left(now)
        if at.whole and left is not None:
            line += f" (in all {100 * at.whole:.0f} %, about {clock(left)} left)"
        self.say(line)
        if at.message != self._message:
            self._message = at.message
            self.say(f"  {at.message}")

    def _end(self) -> None:
        """Report the time of a stage that was long enough to report how far it was."""
        at, age = self._tracker.state, time.monotonic() - self._tracker.state.began
        if at.name and age >= self._seconds:
            self.say(f"{at.name}: done in {clock(age)}")
