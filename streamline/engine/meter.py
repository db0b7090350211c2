"""What running a model costs: seconds, and FLOPs, 2 for each weight and token, from shapes.

Weights are those of :func:`streamline.engine.budget.weights`.

Example::

    with metering() as meter:
        path_losses(paths, batches)
    meter.flops                     # None if the model was also run by other loops
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["Meter", "counted", "current", "entered", "metering"]


@dataclass
class Meter:
    """What has been run so far.

    Attributes:
        flops: Floating-point operations; None as soon as the model was run by a loop that is not
            counted.
        running: Passes that are counted and have not come to their end.
        began: When it was begun, by the clock of :func:`time.perf_counter`.
    """

    flops: float | None = 0.0
    running: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began

    def add(self, flops: float | None, seconds: float = 0.0) -> None:
        """Add what else was run; None for what nobody knows.

        Args:
            flops: Its operations.
            seconds: How long it took, if it was run before this was begun.
        """
        self.flops = None if flops is None or self.flops is None else self.flops + flops
        self.began -= seconds


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metering() -> Iterator[Meter]:
    """Count what is run within it."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


def current() -> Meter | None:
    """What counts now, if anything does."""
    return _METER.get()


def entered() -> None:
    """Note that a model was entered: outside a counted pass nobody knows what follows."""
    meter = _METER.get()
    if meter is not None and not meter.running:
        meter.flops = None


@contextmanager
def counted() -> Iterator[Callable[[int, Callable[[], int]], None]]:
    """Within it a pass is run that is counted.

    Yields:
        To be told how many tokens are run, padding included, and how many weights each of them
        meets, which is asked only where something counts.
    """
    meter = _METER.get()
    if meter is None:
        yield lambda n_tokens, size: None
        return
    meter.running += 1
    try:
        yield lambda n_tokens, size: meter.add(2.0 * n_tokens * size())
    finally:
        meter.running -= 1
