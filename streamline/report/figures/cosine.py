"""How alike the states at two depths are, and which spans were chosen for it.

Example::

    figure = cosine_figure(matrix, "opt-1.3b", chosen_spans(rows))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamline.report.figures.figure import Figure, Spec, mark, number, only, view, word
from streamline.report.figures.style import INK
from streamline.report.findings.rows import Row
from streamline.results.answers import Floats

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


def _tooltip(*more: Spec) -> list[Spec]:
    return [
        word("start", title="from depth"),
        *more,
        number("cosine", format=".4f"),
    ]


def _spans(size: float, tooltip: list[Spec], **channels: Any) -> list[Spec]:
    """Marks of the chosen spans and of those next to them."""
    look = {"data": "spans", "filled": False, "color": "#d55e00"}
    square = {"shape": "square", "size": size, "strokeWidth": 2.5}
    circle = {"shape": "circle", "size": 0.6 * size}
    chosen, next_best = ({"where": [only("kind", kind)]} for kind in ("chosen", "runner-up"))
    return [
        mark("point", look | square | chosen, tooltip=tooltip, **channels),
        mark("point", look | circle | next_best, tooltip=tooltip, **channels),
    ]


def _heatmap(width: int, depth: int) -> Spec:
    side = min(width - 130, 470)
    every = max(1, -(-depth // (12 if width > 400 else 6)))
    ticks = {
        "labelAngle": 0,
        "values": list(range(0, depth, every)),
        "grid": False,
        "domain": False,
    }
    both = {"type": "ordinal", "axis": ticks, "scale": {"domain": list(range(depth))}}
    place = {
        "x": {"field": "stop", "title": "to depth", **both},
        "y": {"field": "start", "title": "from depth", **both},
    }
    colour = number(
        "cosine",
        scale={"scheme": "cividis"},
        legend={"title": "cosine", "gradientLength": min(180, side - 40)},
    )
    stop = word("stop", title="to depth")
    cells = mark("rect", {"data": "cells"}, color=colour, tooltip=_tooltip(stop), **place)
    marks = _spans(
        max(20.0, (side / depth) ** 2),
        _tooltip(stop, word("kind"), word("methods")),
        **place,
    )
    return {"layer": [cells, *marks], "width": side, "height": side}


def _across(width: int, lengths: Sequence[int]) -> Spec:
    place = {
        "x": number(
            "start", title="first layer of the span", axis={"grid": False, "tickMinStep": 1}
        ),
        "y": number("cosine", title="cosine", scale={"zero": False}),
    }
    names = [_layers(length) for length in lengths]
    legend = {"title": None, "orient": "bottom", "symbolStrokeColor": INK}
    dashes = word("length", sort=names, legend=legend)
    line = mark(
        "line", {"data": "across", "color": INK, "strokeWidth": 1.5}, strokeDash=dashes, **place
    )
    marks = _spans(90, _tooltip(word("length"), word("kind"), word("methods")), **place)
    return {"layer": [line, *marks], "width": width - 70, "height": 300}
