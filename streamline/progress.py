"""What long work reports while it runs; who shows it is not its business.

The library calls a :class:`Progress`; the command line shows it as bars with the time left, and
scripts may leave it silent. A method has no such argument: it calls :func:`tell`, which reaches
whoever is :func:`showing`. Work of several stages declares by :func:`portions` which portion of
the whole each one is, so that a display can estimate the time of the whole.

Example::

    for n, trials in enumerate(rounds):
        with part(n, len(rounds)):        # progress in here moves within this round
            score_paths(trials, batches)

    prune, train = portions([1.0, 9.0])   # the training is nine times as long
    with prune:
        progress.stage("prune")
    with train:
        progress.stage("train", total=n_tokens)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Receives stages, steps and remarks of long work."""

    def stage(self, name: str, total: float | None = None) -> None:
        """A new stage begins; ``total`` is its number of units, if known."""

    def step(self, done: float, total: float, message: str = "") -> None:
        """The stage has done ``done`` of ``total`` units."""

    def say(self, message: str) -> None:
        """A remark worth keeping on the screen."""


class Silent:
    """Shows nothing."""

    def stage(self, name: str, total: float | None = None) -> None:
        """Ignore the stage."""

    def step(self, done: float, total: float, message: str = "") -> None:
        """Ignore the step."""

    def say(self, message: str) -> None:
        """Ignore the remark."""


class Remarks(Silent):
    """Writes remarks to standard error, one line each, and shows nothing else."""

    def say(self, message: str) -> None:
        """Write the remark."""
        sys.stderr.write(f"{message}\n")


@dataclass(frozen=True)
class _Place:
    """A part of a stage: ``width`` units from ``start`` on, of ``total``."""

    start: float
    width: float
    total: float


_SHOWN: ContextVar[Progress] = ContextVar("shown")
_PLACE: ContextVar[_Place | None] = ContextVar("place", default=None)
_PORTION: ContextVar[tuple[float, float] | None] = ContextVar("portion", default=None)
_PLANNED: ContextVar[float | None] = ContextVar("planned", default=None)


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Within it, :func:`tell` moves this progress."""
    token = _SHOWN.set(progress)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextmanager
def part(done: float, total: float) -> Iterator[None]:
    """The next of some equal parts of the work; within it, :func:`tell` moves this part alone.

    Args:
        done: Parts done.
        total: Parts in all.
    """
    tell(done, total)
    outer = _PLACE.get()
    if outer is None:
        place = _Place(done, 1.0, total)
    else:
        width = outer.width / total
        place = _Place(outer.start + done * width, width, outer.total)
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


def tell(done: float, total: float, message: str = "") -> None:
    """Say how far the present stage has come, from inside a method.

    Args:
        done: Units of work done.
        total: Units in all.
        message: A few words.
    """
    place = _PLACE.get()
    if place is not None:
        done, total = place.start + place.width * done / total, place.total
    _SHOWN.get(Silent()).step(done, total, message)


def portions(weights: Sequence[float]) -> list[AbstractContextManager[None]]:
    """The consecutive portions that pieces of work are of the present one.

    Args:
        weights: The time of each piece compared with the others; only their ratios count.

    Returns:
        A context manager for each piece: stages that begin within it lie in its portion. Pieces
        that have nothing to do may be left out; their portions count as done.
    """
    start, stop = placed() or (0.0, 1.0)
    total = sum(weights)
    ends = [start]
    for weight in weights:
        ends.append(ends[-1] + (stop - start) * (weight / total if total else 1 / len(weights)))
    return [_portion(pair) for pair in zip(ends, ends[1:], strict=False)]


@contextmanager
def _portion(place: tuple[float, float]) -> Iterator[None]:
    token = _PORTION.set(place)
    try:
        yield
    finally:
        _PORTION.reset(token)


@contextmanager
def planned(seconds: float | None) -> Iterator[None]:
    """Within it, the whole of the work was planned to take so many seconds; None for no plan."""
    token = _PLANNED.set(seconds)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def planned_seconds() -> float | None:
    """What the whole of the present work was planned to take, if it was planned."""
    return _PLANNED.get()


def placed() -> tuple[float, float] | None:
    """Where the present work lies in the whole, from 0 to 1, or None if that is unknown."""
    return _PORTION.get()


def clock(seconds: float) -> str:
    """A duration for people: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True)
class Prefixed:
    """Progress of one of several things: its name stands before every stage and remark.

    Attributes:
        progress: Who shows it.
        name: What it is the progress of.
    """

    progress: Progress
    name: str

    def stage(self, name: str, total: float | None = None) -> None:
        """A new stage of it begins."""
        self.progress.stage(f"{self.name}: {name}", total)

    def step(self, done: float, total: float, message: str = "") -> None:
        """The stage has done ``done`` of ``total`` units."""
        self.progress.step(done, total, message)

    def say(self, message: str) -> None:
        """A remark on it."""
        self.progress.say(f"{self.name}: {message}")
