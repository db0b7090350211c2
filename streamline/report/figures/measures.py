"""A summary measure at each sparsity, with its interval: by method as dots, by sparsity as lines.

Example::

    figure = measure_figure(rows, "stability", style)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamline.report.figures.figure import (
    CHOICE,
    FAINT,
    Figure,
    Spec,
    View,
    mark,
    number,
    view,
    word,
)
from streamline.report.figures.style import INK, SOFT, Style
from streamline.report.findings.rows import Row
from streamline.report.table import percent

__all__ = ["LABEL", "MEASURES", "measure_figure", "name_lines", "name_room", "sparsity_text"]

MEASURES = {
    "accuracy": "average accuracy, %",
    "relative": "share of the dense accuracy kept, %",
    "stability": "stability, %",
}
#: A long name is broken before its options.
LABEL = "replace(replace(datum.label, '+', '\\n+'), ' +', '\\n+')"
_LINE_HEIGHT = 22


def measure_figure(rows: Sequence[Row], measure: str, style: Style) -> Figure | None:
    """Dots with 95 % intervals for each method, sparsity by sparsity.

    Args:
        rows: Of one model.
        measure: One of ``MEASURES``.
        style: The methods' colours.

    Returns:
        The figure, with lines against the sparsity as a second view where there are several; None
        if nothing was measured.
    """
    data = _data(rows, measure)
    if not data:
        return None
    dense = any(row["dense"] is not None for row in data)
    targets = list(dict.fromkeys(row["target"] for row in data))
    last = {row["method"]: row["value"] for row in data}  # at the largest sparsity it has
    order = sorted(last, key=lambda name: -last[name])
    title = MEASURES[measure]

    def dots(width: int) -> Spec:
        return _dots(width, title, order, targets, dense, style)

    views: list[View] = [view("by method", dots)]
    if len(targets) > 1:
        views.append(
            view("by sparsity", lambda width: _lines(width, title, order, targets, style), "lines")
        )
    model = rows[0].model
    return Figure(
        name=f"{measure}-{model}",
        caption=f"{model}: {title.removesuffix(', %')}. A dot is the mean, a line its 95 % interval"
        + ("; the dashed line is the dense model." if dense else "."),
        data={"rows": data},
        views=views,
        half=True,
    )


def sparsity_text(sparsity: float) -> str:
    """A target in words, as in ``25 %``."""
    return f"{100 * sparsity:g} %"


def name_room(names: Sequence[str], width: int) -> int:
    """Pixels that names take beside an axis, broken before their options."""
    longest = max(
        (len(part) for name in names for part in name.replace(" +", "+").split("+")), default=0
    )
    return min(7 * longest + 24, int(0.55 * width))


def name_lines(names: Sequence[str]) -> int:
    """Lines that the longest of some names takes beside an axis: its options and recovery below."""
    return max((1 + ("+" in name.replace(" +", "")) + (" +" in name) for name in names), default=1)


def _data(rows: Sequence[Row], measure: str) -> list[dict[str, Any]]:
    found = []
    dense = next((getattr(row, measure) for row in rows if row.dense), None)
    line = None if dense is None or measure == "stability" else 100 * dense.value
    for row in rows:
        value = getattr(row, measure)
        if row.dense or value is None:
            continue
        found.append(
            {
                "method": row.method,
                "target": sparsity_text(row.sparsity),
                "value": 100 * value.value,
                "low": 100 * value.low,
                "high": 100 * value.high,
                "text": percent(value.value, value.stderr),
                "dense": line,
            }
        )
    return found


_TOOLTIP = [word("method"), word("target"), word("text", title="value ± standard error")]


def _dots(
    width: int,
    title: str,
    order: Sequence[str],
    targets: Sequence[str],
    dense: bool,
    style: Style,
) -> Spec:
    columns = 1 if width < 400 else min(3, len(targets))
    room = name_room(order, width)
    axis = {"title": None, "labelExpr": LABEL, "labelLimit": room, "grid": True}
    y = word("method", sort=list(order), axis=axis)
    x = number("value", title=title, scale={"zero": False}, axis={"grid": False})
    colour = style.colour(order)
    layers = [
        mark("rule", {"strokeWidth": 2}, y=y, x=number("low"), x2="high", color=colour),
        mark("point", {"size": 70}, y=y, x=x, color=colour, shape=style.shape(order),
             tooltip=_TOOLTIP),
    ]  # fmt: skip
    if dense:
        line = number("dense", aggregate="mean")
        layers.insert(0, mark("rule", {"strokeDash": [5, 4], "color": INK}, x=line))
    size = {
        "width": max(120, (width - columns * 12 - room - 20) // columns),
        "height": (_LINE_HEIGHT + 10 * (name_lines(order) - 1)) * len(order),
    }
    if len(targets) == 1:
        return {"layer": layers, **size}
    for layer in layers:
        del layer["data"]  # what is divided into panels has its data outside
    return {
        "data": {"name": "rows"},
        "facet": word("target", sort=list(targets), title=None),
        "columns": columns,
        "spec": {"layer": layers, **size},
    }


def _lines(
    width: int, title: str, order: Sequence[str], targets: Sequence[str], style: Style
) -> Spec:
    x = word(
        "target",
        sort=list(targets),
        title="target sparsity",
        axis={"labelAngle": 0, "grid": False},
        scale={"type": "band", "padding": 0.2},
    )
    y = number("value", title=title, scale={"zero": False}, axis={"titleColor": SOFT})
    shared = {
        "x": x,
        "xOffset": word("method", sort=list(order)),
        "color": style.colour(order, "bottom"),
        "opacity": FAINT,
    }
    shape = style.shape(order, "bottom")
    layers = [
        mark("line", {"strokeWidth": 1.5}, y=y, **shared),
        mark("rule", {"strokeWidth": 1.5}, y=number("low"), y2="high", **shared),
        mark("point", {"size": 70}, y=y, shape=shape, tooltip=_TOOLTIP, **shared)
        | {"params": [CHOICE]},
    ]
    return {"layer": layers, "width": width - 70, "height": 330}
