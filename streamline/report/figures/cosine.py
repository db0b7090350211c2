"""How alike the states at two depths are, and which spans were chosen for it.

Example::

    figure = cosine_figure(matrix, "opt-1.3b", chosen_spans(rows))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.report.figures.figure import Figure, view
from streamline.report.figures.style import INK
from streamline.report.findings.rows import Row
from streamline.results.answers import Floats

if TYPE_CHECKING:
    import altair as alt

__all__ = ["chosen_spans", "cosine_figure"]

_RUNNERS_UP = 3
_LENGTHS = (1, 2, 4, 8)
Spans = Mapping[tuple[int, int], Sequence[str]]


def chosen_spans(rows: Sequence[Row]) -> dict[tuple[int, int], list[str]]:
    """Spans [start, stop) that methods replaced or removed as a whole -> the methods."""
    found: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        plan = row.records[0].plan
        gone = sorted(plan.removed_layers) if row.done and plan else []
        if gone and gone[-1] - gone[0] + 1 == len(gone):
            names = found.setdefault((gone[0], gone[-1] + 1), [])
            if row.method not in names:
                names.append(row.method)
    return found


def cosine_figure(cosine: Floats, name: str, chosen: Spans) -> Figure:
    """Mean token cosine between every two depths, with the chosen spans and those next to them.

    Args:
        cosine: [L + 1, L + 1]; depth 0 is the input of layer 0.
        name: Of the model.
        chosen: From ``chosen_spans``; runners-up are the next best of equal length.
    """
    depth = len(cosine)
    inside = {span: names for span, names in chosen.items() if span[1] < depth}
    cells = [
        {"start": start, "stop": stop, "cosine": round(float(cosine[start, stop]), 4)}
        for start in range(depth)
        for stop in range(start, depth)
    ]
    lengths = sorted({stop - start for start, stop in inside}) or [
        length for length in _LENGTHS if length < depth
    ]
    spans = [_span(cosine, start, stop, "chosen", names) for (start, stop), names in inside.items()]
    across = []
    for length in lengths:
        values = np.diagonal(cosine, length)
        order = np.argsort(-values, kind="stable").tolist()
        rest = [int(start) for start in order if (start, start + length) not in inside]
        spans += [
            _span(cosine, start, start + length, "runner-up", []) for start in rest[:_RUNNERS_UP]
        ]
        across += [
            {"start": start, "length": _layers(length), "cosine": round(float(value), 4)}
            for start, value in enumerate(values)
        ]
    taken = "Squares: spans that methods took out; circles: the next best of the same length."
    return Figure(
        name=f"cosine-{name}",
        caption=f"{name}: mean cosine of a token's states before and after a span. {taken}",
        data={"cells": cells, "spans": spans, "across": across},
        views=[
            view("all spans", lambda width: _heatmap(width, depth)),
            view("spans of the lengths used", lambda width: _across(width, lengths), "spans"),
        ],
        half=True,
    )


def _span(cosine: Floats, start: int, stop: int, kind: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "start": start,
        "stop": stop,
        "length": _layers(stop - start),
        "kind": kind,
        "methods": ", ".join(names),
        "cosine": round(float(cosine[start, stop]), 4),
    }


def _layers(length: int) -> str:
    return "1 layer" if length == 1 else f"{length} layers"


def _tooltip(*more: str) -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("start:O", title="from depth"),
        *(alt.Tooltip(name) for name in more),
        alt.Tooltip("cosine:Q", format=".4f"),
    ]


def _heatmap(width: int, depth: int) -> alt.TopLevelMixin:
    import altair as alt

    side = min(width - 130, 470)
    every = max(1, -(-depth // (12 if width > 400 else 6)))
    ticks = alt.Axis(labelAngle=0, values=list(range(0, depth, every)), grid=False, domain=False)
    scale = alt.Scale(domain=list(range(depth)))
    x = alt.X("stop:O", title="to depth", axis=ticks, scale=scale)
    y = alt.Y("start:O", title="from depth", axis=ticks, scale=scale)
    colour = alt.Color(
        "cosine:Q",
        scale=alt.Scale(scheme="cividis"),
        legend=alt.Legend(title="cosine", gradientLength=min(180, side - 40)),
    )
    cells = (
        alt.Chart(alt.NamedData("cells"))
        .mark_rect()
        .encode(x=x, y=y, color=colour, tooltip=_tooltip("stop:O"))
    )
    marks = alt.Chart(alt.NamedData("spans")).encode(
        x=x, y=y, tooltip=_tooltip("stop:O", "kind:N", "methods:N")
    )
    size = max(20.0, (side / depth) ** 2)
    return alt.layer(
        cells,
        marks.mark_point(
            filled=False, size=size, shape="square", color="#d55e00", strokeWidth=2.5
        ).transform_filter(alt.datum.kind == "chosen"),
        marks.mark_point(
            filled=False, size=0.6 * size, shape="circle", color="#d55e00"
        ).transform_filter(alt.datum.kind == "runner-up"),
    ).properties(width=side, height=side)


def _across(width: int, lengths: Sequence[int]) -> alt.TopLevelMixin:
    import altair as alt

    names = [_layers(length) for length in lengths]
    x = alt.X("start:Q", title="first layer of the span", axis=alt.Axis(grid=False, tickMinStep=1))
    y = alt.Y("cosine:Q", title="cosine", scale=alt.Scale(zero=False))
    dashes = alt.StrokeDash(
        "length:N",
        sort=names,
        legend=alt.Legend(title=None, orient="bottom", symbolStrokeColor=INK),
    )
    spans = alt.Chart(alt.NamedData("spans")).encode(
        x=x, y=y, tooltip=_tooltip("length:N", "kind:N", "methods:N")
    )
    return alt.layer(
        alt.Chart(alt.NamedData("across"))
        .mark_line(color=INK, strokeWidth=1.5)
        .encode(x=x, y=y, strokeDash=dashes),
        spans.mark_point(
            shape="square", filled=False, size=90, color="#d55e00", strokeWidth=2.5
        ).transform_filter(alt.datum.kind == "chosen"),
        spans.mark_point(shape="circle", filled=False, size=50, color="#d55e00").transform_filter(
            alt.datum.kind == "runner-up"
        ),
    ).properties(width=width - 70, height=300)
