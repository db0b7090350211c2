"""What a greedy search by loss found, round by round, and how a calibration keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from streamline.methods.loss_search import Found
from streamline.methods.unfinished import keep_unfinished, unfinished


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        unit: Number of what would be removed: a layer, or one of its sublayers.
        loss: Mean negative log-likelihood per token without it, in nats.
        layer_runs: Layer evaluations.
        naive_layer_runs: The same without sharing prefixes.
    """

    unit: int
    loss: float
    layer_runs: int
    naive_layer_runs: int

    @classmethod
    def of(cls, unit: int, found: Found) -> Round:
        """The round that found this unit."""
        return cls(unit, found.loss, found.layer_runs, found.naive_layer_runs)


def to_extras(rounds: Sequence[Round]) -> dict[str, Tensor]:
    """Rounds as tensors of a calibration."""
    rows = [astuple(each) for each in rounds]
    counts = [[unit, *runs] for unit, _, *runs in rows]
    return {
        "rounds": torch.tensor(counts, dtype=torch.int64).reshape(-1, 3),
        "losses": torch.tensor([loss for _, loss, *_ in rows], dtype=torch.float64),
    }


def from_extras(extras: Mapping[str, Tensor]) -> list[Round]:
    """The rounds that a calibration keeps."""
    counts, losses = extras["rounds"].tolist(), extras["losses"].tolist()
    return [Round(unit, loss, *runs) for (unit, *runs), loss in zip(counts, losses, strict=True)]


def notes(rounds: Sequence[Round], order: Sequence[Any]) -> dict[str, Any]:
    """The search as it is written in the record.

    Args:
        rounds: Those whose unit was removed.
        order: Their units as a reader knows them.
    """
    return {
        "order": list(order),
        "losses": [each.loss for each in rounds],
        "layer_runs": sum(each.layer_runs for each in rounds),
        "naive_layer_runs": sum(each.naive_layer_runs for each in rounds),
    }


def resumed(done: Sequence[Round], losses: Sequence[float] = ()) -> tuple[list[Round], list[float]]:
    """Where a search goes on: at the end of another, or where a killed run of it stopped.

    Args:
        done: Rounds of a finished search that this one goes on from.
        losses: What else that search left, a loss of each unit; minus infinity where unknown.

    Returns:
        The rounds and losses that are further.
    """
    kept = unfinished()
    if kept is None or len(kept["rounds"]) <= len(done):
        return list(done), list(losses)
    rounds = [Round(*row) for row in kept["rounds"]]
    return rounds, [-math.inf if loss is None else loss for loss in kept["losses"]]


def keep_rounds(rounds: Sequence[Round], losses: Sequence[float] = ()) -> None:
    """Keep what a search has found so far, for :func:`resumed`."""
    known = [loss if math.isfinite(loss) else None for loss in losses]
    keep_unfinished({"rounds": [astuple(each) for each in rounds], "losses": known})
