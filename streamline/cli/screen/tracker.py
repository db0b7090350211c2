"""How far long work is, and how long the rest will be: the sums behind every display."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from streamline.progress import clock, placed, planned_seconds

__all__ = ["State", "Tracker"]

_TRUST = 0.05  # the part of the whole whose pace counts as much as the plan
_FACTOR = 2.0  # that a plan may be wrong by
_SHOWN = 0.05  # seconds; of less a clock shows none
_SURE, _SOON = 0.05, 60.0  # the part of the whole, and the seconds, before a plan is judged


@dataclass(frozen=True)
class State:
    """Where the work stands; one value, so that another thread reads all of it at once.

    Attributes:
        name: The stage.
        began: When it began, as ``time.monotonic`` gives it.
        done: Units done.
        total: Units in all, or None.
        message: What the stage reports.
        first: Units at the first step: an earlier process may have done them.
        second: Units at the second step.
        place: The stage's portion of the whole, or None.
        reached: The part of the whole that was done before.
        made: The part of the whole that earlier stages of this process did.
        opened: When the first stage with a portion began, or None.
        planned: Seconds that the whole was planned to take, or None.
    """

    name: str = ""
    began: float = 0.0
    done: float = 0.0
    total: float | None = None
    message: str = ""
    first: float | None = None
    second: float | None = None
    place: tuple[float, float] | None = None
    reached: float = 0.0
    made: float = 0.0
    opened: float | None = None
    planned: float | None = None

    @property
    def fraction(self) -> float | None:
        """The part of the stage that is done, if it is known."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def whole(self) -> float | None:
        """The part of the whole that is done, if the stage has a place in it."""
        if self.place is None:
            return self.reached or None
        start, stop = self.place
        return max(self.reached, start + (stop - start) * (self.fraction or 0.0))

    @property
    def skipped(self) -> float:
        """Units that an earlier process did: those before the first step of this one."""
        if self.first is None or self.second is None:
            return 0.0
        return max(0.0, 2 * self.first - self.second)

    def age(self, now: float) -> float:
        """Seconds since the whole began."""
        return now - (self.began if self.opened is None else self.opened)

    def left(self, now: float) -> float | None:
        """Seconds of the rest of the stage at its pace so far, once there is a pace."""
        if not self.total or self.second is None or not self.skipped < self.done < self.total:
            return None
        left = (self.total - self.done) * (now - self.began) / (self.done - self.skipped)
        return left if left >= _SHOWN else None

    def whole_left(self, now: float) -> float | None:
        """Seconds of the rest of the whole: as planned at first, more and more at its own pace.

        A stage that does not tell how far it is takes of its own portion as time goes by.

        Returns:
            None where nothing is known, or all is over that there was to be and work goes on.
        """
        made, at = self.made + self._own(), now if self.total else self.began
        if self.whole is None:
            return None
        if self.planned is not None:
            pace = (self.age(at) + _TRUST * self.planned) / (made + _TRUST)
        elif made < 0.01:
            return None
        else:
            pace = self.age(at) / made
        later = 0.0 if self.place is None else (1.0 - self.place[1]) * pace
        left = max(later, (1.0 - self.whole) * pace - (now - at))
        return left if left >= _SHOWN else None

    def off_plan(self, now: float) -> str | None:
        """What is to be said of a plan that is more than a factor of two away, once that shows."""
        made, age = self.made + self._own(), self.age(now)
        if self.planned is None or self.whole is None or made < _SURE or age < _SOON:
            return None
        rest = max(0.0, 1.0 - self.whole)
        plan, now_in_all = (made + rest) * self.planned, (made + rest) * age / made
        if plan / _FACTOR <= now_in_all <= plan * _FACTOR:
            return None
        return f"this run was planned at {clock(plan)}; at its pace it takes {clock(now_in_all)}"

    def _own(self, finished: bool = False) -> float:
        """The part of the whole that this stage has done in this process."""
        if self.place is None:
            return 0.0
        start, stop = self.place
        before = start + (stop - start) * (self.skipped / self.total if self.total else 0.0)
        now = start + (stop - start) * (1.0 if finished else self.fraction or 0.0)
        return max(0.0, now - max(before, self.reached))

    def followed_by(self, name: str, total: float | None, now: float) -> State:
        """The state as the next stage begins."""
        place = placed()
        start = 0.0 if place is None else place[0]
        finished = self.place is not None and start >= self.place[1]
        reached = max(self.reached, self.whole or 0.0, start)
        made = self.made + self._own(finished)
        opened = now if self.opened is None and place is not None else self.opened
        return State(
            name, now, total=total, place=place, reached=reached, made=made, opened=opened,
            planned=planned_seconds() or self.planned,
        )  # fmt: skip


class Tracker:
    """Keeps the :class:`State` of a display."""

    def __init__(self) -> None:
        self.state = State(began=time.monotonic())
        self._judged = False

    def stage(self, name: str, total: float | None) -> None:
        """A stage begins; the one before it counts as done."""
        self.state = self.state.followed_by(name, total, time.monotonic())

    def step(self, done: float, total: float, message: str) -> None:
        """The stage has done ``done`` of ``total`` units."""
        at = self.state
        first = done if at.first is None else at.first
        second = done if at.second is None and done > first else at.second
        self.state = replace(
            at, done=done, total=total, message=message or at.message, first=first, second=second
        )

    def warning(self) -> str | None:
        """That reality has left the plan, the first time that it has."""
        found = None if self._judged else self.state.off_plan(time.monotonic())
        self._judged = self._judged or found is not None
        return found
