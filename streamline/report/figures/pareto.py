"""What pruning buys and what it costs: accuracy kept against speed, size, memory or training.

Example::

    figure = pareto_figure(rows, style)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamline.report.figures.figure import (
    CHOICE,
    FAINT,
    WIDE,
    Figure,
    Spec,
    mark,
    number,
    only,
    view,
    word,
)
from streamline.report.figures.measures import name_room, sparsity_text
from streamline.report.figures.style import LINE, Style
from streamline.report.findings.rows import Row
from streamline.report.table import percent
from streamline.results.blocks.efficiency import Efficiency, Quartiles
from streamline.results.record import Record

__all__ = ["pareto_figure", "speed_ratio"]

_Range = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Across:
    """What may stand across: its name, its axis and where a record has it: (middle, low, high)."""

    name: str
    label: str
    title: str
    of: Callable[[Record], _Range | None]
    more_is_better: bool = True
    dense: float | None = None


def speed_ratio(record: Record, phase: Any) -> Quartiles | None:
    """How many times as fast as the dense model a phase is at batch 1, if it was measured."""
    speed = None if record.efficiency is None else record.efficiency.speed(phase, 1)
    return None if speed is None else speed.ratio


def _speed(phase: str) -> Callable[[Record], _Range | None]:
    def of(record: Record) -> _Range | None:
        ratio = speed_ratio(record, phase)
        return None if ratio is None else (ratio.median, ratio.lower, ratio.upper)

    return of


def _parameters(record: Record) -> _Range | None:
    removed = record.parameters.removed_fraction
    return None if removed is None else (100 * removed,) * 3


def _bytes(record: Record) -> _Range | None:
    found: Efficiency | None = record.efficiency
    before = None if found is None or found.dense is None else found.dense.checkpoint_bytes
    if found is None or found.checkpoint_bytes is None or not before:
        return None
    return (100 * (1 - found.checkpoint_bytes / before),) * 3


def _memory(record: Record) -> _Range | None:
    found: Efficiency | None = record.efficiency
    if found is None or found.peak_memory_bytes is None or not found.dense_peak_memory_bytes:
        return None
    return (100 * (1 - found.peak_memory_bytes / found.dense_peak_memory_bytes),) * 3


def _training(record: Record) -> _Range | None:
    flops = record.cost.train_flops
    if flops is None and (record.cost.train_tokens or record.plan is None):
        return None
    return ((flops or 0.0) / 1e15,) * 3


_MEASURES = (
    _Across(
        name="",
        label="decoding speed",
        title="decoding speed, times dense (batch 1)",
        of=_speed("decode"),
        dense=1.0,
    ),
    _Across(
        name="prefill",
        label="prefill speed",
        title="prefill speed, times dense (batch 1)",
        of=_speed("prefill"),
        dense=1.0,
    ),
    _Across(
        name="parameters",
        label="parameters",
        title="parameters removed, %",
        of=_parameters,
        dense=0.0,
    ),
    _Across(
        name="bytes",
        label="file size",
        title="bytes of the weights saved, %",
        of=_bytes,
        dense=0.0,
    ),
    _Across(
        name="memory",
        label="memory",
        title="peak memory of generating saved, %",
        of=_memory,
        dense=0.0,
    ),
    _Across(
        name="training",
        label="training cost",
        title="training, PFLOP",
        of=_training,
        more_is_better=False,
    ),
)


def pareto_figure(rows: Sequence[Row], style: Style) -> Figure | None:
    """The share of the dense accuracy kept against each measure that was taken.

    Args:
        rows: Of one model.
        style: The methods' colours.

    Returns:
        The figure, a view for each measure; None if no accuracy is known.
    """
    pruned = [row for row in rows if row.relative is not None and not row.dense]
    data: list[dict[str, Any]] = []
    frontier: list[dict[str, Any]] = []
    there = []
    for across in _MEASURES:
        points = _points(pruned, across)
        if len({point["x"] for point in points}) < 2 and across.name != "parameters":
            continue
        if across.name == "bytes" and not any(map(_otherwise, pruned)):
            continue
        data += points
        frontier += [
            {"measure": point["measure"], "x": point["x"], "y": point["y"]}
            for point in _frontier(points, across)
        ]
        there.append(across)
    if not data:
        return None
    methods = [name for name in style.methods if any(row["method"] == name for row in data)]
    several = len({row["target"] for row in data}) > 1
    model = rows[0].model

    def drawn(across: _Across) -> Any:
        return lambda width: _chart(width, across, methods, several, style)

    return Figure(
        name=f"pareto-{model}",
        caption=f"{model}: share of the dense accuracy kept, with 95 % intervals, and quartiles "
        "of what was measured several times. The broad grey line joins the methods that no other "
        "beats in both" + ("; dotted lines join the points of one method." if several else "."),
        data={"rows": data, "frontier": frontier},
        views=[view(across.label, drawn(across), across.name, WIDE) for across in there],
        switch="across",
    )


def _otherwise(row: Row) -> bool:
    """Whether a model's bytes are fewer by another share than its parameters."""
    size, count = _bytes(row.records[0]), _parameters(row.records[0])
    return size is not None and count is not None and abs(size[0] - count[0]) > 1


def _points(rows: Sequence[Row], across: _Across) -> list[dict[str, Any]]:
    points = []
    for row in rows:
        place = across.of(row.records[0])
        if place is None or row.relative is None:
            continue
        points.append(
            {
                "measure": across.label,
                "method": row.method,
                "target": sparsity_text(row.sparsity),
                "x": place[0],
                "x_low": place[1],
                "x_high": place[2],
                "y": 100 * row.relative.value,
                "y_low": 100 * row.relative.low,
                "y_high": 100 * row.relative.high,
                "kept": percent(row.relative.value, row.relative.stderr),
            }
        )
    return points


def _frontier(points: Sequence[dict[str, Any]], across: _Across) -> list[dict[str, Any]]:
    """Points that no other beats in both, from the best place on."""
    sign = 1 if across.more_is_better else -1
    found: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (-sign * p["x"], -p["y"])):
        if not found or point["y"] > found[-1]["y"]:
            found.append(point)
    return found


def _chart(
    width: int, across: _Across, methods: Sequence[str], several: bool, style: Style
) -> Spec:
    wide = width > 600
    place = "right" if wide else "bottom"
    ours: Spec = {"where": [only("measure", across.label)]}
    thin = ours | {"strokeWidth": 1}
    x = number("x", title=across.title, scale={"zero": False, "padding": 18})
    y = number("y", title="dense accuracy kept, %", scale={"zero": False, "padding": 10})
    shared = {"color": style.colour(methods, place), "opacity": FAINT}
    tooltip = [
        word("method"),
        word("target"),
        number("x", title=across.label, format=".3~g"),
        word("kept", title="kept ± standard error"),
    ]
    frontier = {"data": "frontier", "color": LINE, "strokeWidth": 7, "strokeJoin": "round"}
    layers = [
        mark("line", ours | frontier, x=x, y=y, order=number("x")),
        mark("rule", thin, x=x, y=number("y_low"), y2="y_high", **shared),
        mark("rule", thin, x=number("x_low"), x2="x_high", y=y, **shared),
    ]
    if several:
        layers.append(mark("line", thin | {"strokeDash": [2, 3]}, x=x, y=y, **shared))
    points = mark(
        "point",
        ours | {"size": 90},
        x=x,
        y=y,
        shape=style.shape(methods, place),
        tooltip=tooltip,
        **shared,
    )
    layers.append(points | {"params": [CHOICE]})
    names = name_room(methods, width) + 110 if wide else 70
    return {"layer": layers, "width": width - names, "height": 300}
