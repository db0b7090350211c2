"""Times of two models in turn: pairs that were taken one right after the other.

Example::

    times = in_turn([dense_step, variant_step], most=12, until=clock() + 5, device=device)
    quartiles([8 / seconds for seconds in times[1]])        # tokens per second of 8 sequences
    ratios(times)                                           # dense to variant
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from streamline.evaluation.efficiency.decoding import synchronize

__all__ = ["clock", "in_turn", "quartiles", "ratios"]

clock = time.perf_counter


def in_turn(
    actions: Sequence[Callable[[], object]], *, most: int, until: float, device: torch.device
) -> list[list[float]]:
    """Seconds of each of some actions, over and over.

    Args:
        actions: What is timed, in turn: forwards in one round, backwards in the next, so that what
            changes with time meets all alike.
        most: Rounds; there is at least one.
        until: When :data:`clock` is beyond it, no further round is begun.
        device: Where it is done.

    Returns:
        For each action its seconds by round.
    """
    found: list[list[float]] = [[] for _ in actions]
    for number in range(most):
        if number and clock() > until:
            break
        order = range(len(actions))
        for index in order if number % 2 == 0 else reversed(order):
            synchronize(device)
            start = clock()
            actions[index]()
            synchronize(device)
            found[index].append(clock() - start)
    return found


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile, interpolated."""
    lower, median, upper = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return {"median": median, "lower": lower, "upper": upper}


def ratios(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times faster the last of the models was than the first, by pairs of one round.

    Of one model beside itself it is 1.
    """
    pairs = zip(times[0], times[-1], strict=True)
    return quartiles([dense / variant for dense, variant in pairs])
