"""Which layers each method removes: methods against depth, sparsity by sparsity.

Example::

    figure = layers_figure(rows, style)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamline.report.figures.figure import Figure, Spec, mark, only, view, word
from streamline.report.figures.measures import LABEL, name_lines, name_room, sparsity_text
from streamline.report.figures.style import LINE, PAGE, Style
from streamline.report.findings.rows import Row

__all__ = ["layers_figure"]

_KEPT, _CHANGED, _REMOVED, _REPLACED = "kept", "changed", "removed", "replaced"


def layers_figure(rows: Sequence[Row], style: Style) -> Figure | None:
    """A strip of layers for each method; of several seeds the first.

    Args:
        rows: Of one model.
        style: The methods' colours.

    Returns:
        The figure, a view for each sparsity; None if no plan is known.
    """
    planned = [row for row in rows if row.done and not row.dense and row.records[0].plan]
    depth = max(
        (
            layer + 1
            for row in rows
            if row.records[0].plan
            for layer in (*row.records[0].plan.kept_layers, *row.records[0].plan.removed_layers)
        ),
        default=0,
    )
    data = [cell for row in planned for cell in _cells(row, depth)]
    if not data:
        return None
    targets = sorted({row.sparsity for row in planned})
    model = rows[0].model
    order = list(dict.fromkeys(row.method for row in planned))

    def drawn(target: float) -> Any:
        shown = [
            name
            for name in order
            if any(row.method == name and row.sparsity == target for row in planned)
        ]
        return lambda width: _strip(width, sparsity_text(target), shown, depth, style)

    views = [
        view(sparsity_text(target), drawn(target), f"{target:g}" if len(targets) > 1 else "")
        for target in targets
    ]
    return Figure(
        name=f"layers-{model}",
        caption=f"{model}: which of the {depth} layers each method takes out. Filled: removed; "
        "filled with a dot: removed and replaced, as one span or more; half height: kept in part "
        "or changed, such as without its attention; grey: kept.",
        data={"rows": data},
        views=views,
        switch="target",
        half=True,
    )


def _cells(row: Row, depth: int) -> list[dict[str, Any]]:
    plan = row.records[0].plan
    assert plan is not None
    removed, kept = set(plan.removed_layers), set(plan.kept_layers)
    gone = _REPLACED if plan.replacement else _REMOVED
    narrower = not removed and len(kept) == depth  # every layer is changed
    states = {
        layer: gone if layer in removed else _CHANGED if narrower or layer not in kept else _KEPT
        for layer in range(depth)
    }
    return [
        {
            "method": row.method,
            "target": sparsity_text(row.sparsity),
            "layer": layer,
            "state": state,
            "by": plan.replacement or "",
        }
        for layer, state in states.items()
    ]


def _strip(width: int, target: str, order: Sequence[str], depth: int, style: Style) -> Spec:
    room = name_room(order, width)
    step = 14 + 10 * name_lines(order)
    every = max(1, -(-depth // (12 if width > 400 else 7)))
    shown = list(range(0, depth, every))
    x = {
        "field": "layer",
        "type": "ordinal",
        "title": "layer",
        "scale": {"domain": list(range(depth)), "paddingInner": 0.12},
        "axis": {"labelAngle": 0, "values": shown, "grid": False, "ticks": False},
    }
    names = {"title": None, "labelExpr": LABEL, "labelLimit": room, "ticks": False, "domain": False}
    shared = {
        "x": x,
        "y": word("method", sort=list(order), scale={"domain": list(order)}, axis=names),
        "tooltip": [word("method"), word("layer"), word("state"), word("by", title="replaced by")],
    }
    colour = style.colour(order)

    def cells(share: float, *states: str) -> Spec:
        where = [only("target", target), only("state", *states)]
        return {"height": {"band": share}, "where": where}

    dots = {
        "size": 16,
        "color": PAGE,
        "shape": "circle",
        "where": [only("target", target), only("state", _REPLACED)],
    }
    layers = [
        mark("rect", cells(0.62, _KEPT) | {"color": LINE}, **shared),
        mark("rect", cells(0.62, _REMOVED, _REPLACED), color=colour, **shared),
        mark("rect", cells(0.26, _CHANGED), color=colour, **shared),
        mark("point", dots, **shared),
    ]
    return {"layer": layers, "width": width - room - 20, "height": step * len(order)}
