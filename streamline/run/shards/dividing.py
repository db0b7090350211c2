"""The cells of a run in parts that take about equally long, the same ones on every machine.

Neighbours stay together: the cells of a model, and those that differ in their recovery alone, so
that what they share is made by one process. A part is a piece of the row of all cells, and the
longest part is as short as it can be; a little longer where that keeps together what is trained on
one teacher.

Example::

    divided(config, 8)[2]           # the cells of shard 3/8
    shard_part(config)              # those of the run's own shard, or the whole run
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from streamline.run.cell import Cell, expand
from streamline.run.config import RunConfig
from streamline.run.planning.amounts import Amounts
from streamline.run.planning.asked import asked_of
from streamline.run.planning.plan import Row
from streamline.run.planning.rows import rows_of
from streamline.run.shards.part import WHOLE, Part

__all__ = ["divided", "shard_part"]

log = logging.getLogger(__name__)

_ALGEBRA = 50  # operations of products that take as long as one of a decomposition, at least
_WORTH = 1.25  # of the longest part's cost, so that no teacher is run by two processes
_TRIES = 60  # halvings of the bounds between which the longest part's cost lies


@dataclass(frozen=True)
class _Costs:
    """What cells take that are in one part whatever happens, in floating-point operations.

    Attributes:
        cells: The cells; one, unless they are kept together.
        own: What is done for them alone.
        shared: What is done once for all cells of a part that need it, by name.
    """

    cells: tuple[Cell, ...]
    own: float
    shared: dict[Hashable, float]


def shard_part(config: RunConfig) -> Part:
    """The cells that a run's setting ``shard`` means; the whole run without it."""
    if config.shard is None:
        return WHOLE
    index, total = map(int, config.shard.split("/"))
    return Part(f"{index}-of-{total}", frozenset(divided(config, total)[index - 1]))


def divided(config: RunConfig, total: int) -> list[list[Cell]]:
    """The cells of a run in some parts; there may be fewer cells than parts.

    Args:
        config: The run.
        total: The number of parts.

    Returns:
        The cells of each part; what a part has is decided by the run's settings alone.
    """
    row = [cost for model in config.models for cost in _of_model(config.for_model(model), model)]
    least, parts = _divided(row, total)
    most, kept = _divided(_by_teacher(row), total)
    if most <= _WORTH * least:
        parts = kept
    return parts + [[] for _ in range(total - len(parts))]


def _divided(row: Sequence[_Costs], total: int) -> tuple[float, list[list[Cell]]]:
    """At most some pieces of the row, the longest as short as it can be, and what that takes."""
    each = [one.own + sum(one.shared.values()) for one in row]
    low, high = max(each), sum(each)
    parts = _filled(row, high)
    for _ in range(_TRIES):
        middle = (low + high) / 2
        found = _filled(row, middle)
        if len(found) > total:
            low = middle
        else:
            high, parts = middle, found
    return high, parts


def _by_teacher(row: Sequence[_Costs]) -> list[_Costs]:
    """The row with neighbours that are trained on one teacher as one."""
    found: list[_Costs] = []
    for one in row:
        teacher, before = _teacher(one), found[-1] if found else None
        if before is not None and teacher is not None and teacher == _teacher(before):
            both = (*before.cells, *one.cells)
            found[-1] = _Costs(both, before.own + one.own, before.shared | one.shared)
        else:
            found.append(one)
    return found


def _teacher(one: _Costs) -> Hashable | None:
    """The teacher that cells are trained on, if any."""
    return next((n for n in one.shared if isinstance(n, tuple) and n[0] == "teacher"), None)


def _filled(row: Sequence[_Costs], most: float) -> list[list[Cell]]:
    """Pieces of the row, each as long as it may be; a cell that is longer has its own."""
    parts: list[list[Cell]] = []
    load, there = 0.0, set[Hashable]()
    for one in row:
        more = one.own + sum(cost for name, cost in one.shared.items() if name not in there)
        if not parts or load + more > most:
            parts.append([])
            load, there = 0.0, set()
            more = one.own + sum(one.shared.values())
        parts[-1] += one.cells
        load += more
        there |= set(one.shared)
    return parts


def _of_model(own: RunConfig, model: str) -> list[_Costs]:
    """The cells of a model in the order in which they share most, and what they take."""
    cells = expand(own, model)
    try:
        decoder, methods, rows = rows_of(model, own, cells)
        amounts = Amounts(decoder, methods, own, asked_of(own), alone=1.0)
        costs = [_costs(row, amounts) for row in rows]
    except Exception:  # its cells fail with it
        log.debug("%s cannot be planned", model, exc_info=True)
        return [_Costs((cell,), 0.0, {}) for cell in cells]
    return sorted(costs, key=_kin)  # among equals the run's order


def _kin(one: _Costs) -> int:
    """Cells that share most are next to each other: first those that have no network to train."""
    [cell] = one.cells
    return -1 if _teacher(one) is None else cell.seed


def _costs(row: Row, amounts: Amounts) -> _Costs:
    """What a cell takes, as far as its settings say; what cannot be done takes nothing."""
    cell, c = row.cell, amounts.config.calibration
    # Whoever works a model loads it, prepares the questions and reads the dense model's answers.
    shared: dict[Hashable, float] = {
        ("model", cell.model): 2.0 * row.dense * c.n_samples * c.length
    }
    own = 0.0
    for work in amounts.of(row):
        takes = work.flops + _ALGEBRA * work.algebra
        if work.shared is None:
            own += takes
        else:
            shared[work.shared] = takes
    return _Costs((cell,), own, shared)
