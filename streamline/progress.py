"""What long work says while it runs; who shows it is not its business.

The library calls a :class:`Progress`; the command line shows it as a bar with time left, and
scripts may leave it silent.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives stages, steps and remarks of long work."""

    def stage(self, name: str, total: float | None = None) -> None:
        """A new stage begins; ``total`` is its number of units, if known."""

    def step(self, done: float, total: float, message: str = "") -> None:
        """The stage stands at ``done`` of ``total`` units."""

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
