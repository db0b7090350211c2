"""Accuracy against parameters over all models of a report: pruned ones beside smaller dense ones.

Example::

    figure = sizes_figure(rows, style)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamline.report.figures.figure import (
    CHOICE,
    FAINT,
    WIDE,
    Figure,
    Spec,
    mark,
    number,
    view,
    word,
)
from streamline.report.figures.measures import name_room, sparsity_text
from streamline.report.figures.style import INK, Style
from streamline.report.findings.rows import Row
from streamline.report.table import percent

__all__ = ["sizes_figure"]


def sizes_figure(rows: Sequence[Row], style: Style) -> Figure | None:
    """The average accuracy of each row against the parameters that it has.

    Args:
        rows: Of several models. Those that answered other tasks than most are left out.
        style: The methods' colours.

    Returns:
        The figure; None for one model, or where no dense model is smaller than another.
    """
    done = [row for row in rows if row.done and row.accuracy is not None]
    asked = [frozenset(row.tasks) for row in done]
    common = max(asked, key=asked.count, default=frozenset())
    known = [(row, _parameters(row)) for row in done if frozenset(row.tasks) == common]
    data = [_point(row, count) for row, count in known if count]
    dense = [point for point in data if point["method"] == "dense"]
    if len({point["x"] for point in dense}) < 2:
        return None
    methods = [name for name in style.methods if any(p["method"] == name for p in data)]
    pruned = [point for point in data if point["method"] != "dense"]
    return Figure(
        name="sizes",
        caption="Average accuracy against parameters, with 95 % intervals. Named points are dense "
        "models; a line joins what one method makes of one of them.",
        data={"rows": pruned, "dense": dense},
        views=[view("all", lambda width: _chart(width, methods, style), width=WIDE)],
    )


def _parameters(row: Row) -> int | None:
    found = row.records[0].parameters
    return found.dense if row.dense else found.pruned


def _point(row: Row, count: int) -> dict[str, Any]:
    value = row.accuracy
    assert value is not None
    return {
        "model": row.model.rsplit("/", 1)[-1],
        "method": row.method,
        "series": f"{row.model} {row.method}",
        "target": sparsity_text(row.sparsity),
        "x": count / 1e6,
        "y": 100 * value.value,
        "y_low": 100 * value.low,
        "y_high": 100 * value.high,
        "text": percent(value.value, value.stderr),
    }


def _chart(width: int, methods: Sequence[str], style: Style) -> Spec:
    wide = width > 600
    place = "right" if wide else "bottom"
    x = number("x", title="parameters, millions", scale={"zero": False, "padding": 30})
    y = number("y", title="average accuracy, %", scale={"zero": False, "padding": 10})
    shared = {"color": style.colour(methods, place), "opacity": FAINT}
    tooltip = [
        word("model"),
        word("method"),
        word("target"),
        number("x", title="million parameters", format=",.0f"),
        word("text", title="accuracy ± standard error"),
    ]
    ink = {"data": "dense", "color": INK}
    layers = [
        mark("rule", {"strokeWidth": 1}, x=x, y=number("y_low"), y2="y_high", **shared),
        mark("line", {"strokeWidth": 1}, x=x, y=y, detail=word("series"), **shared),
        mark("rule", ink | {"strokeWidth": 1}, x=x, y=number("y_low"), y2="y_high"),
        mark("point", ink | {"size": 90, "shape": "diamond"}, x=x, y=y, tooltip=tooltip),
        mark("text", ink | {"dy": -10, "align": "center"}, x=x, y=y, text=word("model")),
        mark(
            "point",
            {"size": 90},
            x=x,
            y=y,
            shape=style.shape(methods, place),
            tooltip=tooltip,
            **shared,
        )
        | {"params": [CHOICE]},
    ]
    names = name_room(methods, width) + 110 if wide else 70
    return {"layer": layers, "width": width - names, "height": 320}
