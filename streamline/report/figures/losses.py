"""Validation loss in training, a line for each replacement.

Example::

    figure = loss_figure({(0.25, ""): {"llm-streamline-ffn": evaluations}}, "opt-1.3b", style)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamline.report.figures.figure import (
    CHOICE,
    FAINT,
    Figure,
    Spec,
    mark,
    number,
    only,
    view,
    word,
)
from streamline.report.figures.style import DENSE, Style

__all__ = ["loss_figure"]

Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def loss_figure(groups: Mapping[str, Curves], name: str, style: Style) -> Figure | None:
    """Validation loss against training tokens, or steps where a curve has no tokens.

    Args:
        groups: What is chosen by the switch, such as a sparsity -> name of a curve -> evaluations
            with ``validation_loss`` and ``tokens`` or else ``step``; rows without a validation
            loss are left out, and so are curves of fewer than two.
        name: Of the model.
        style: The methods' colours; a curve has that of the method its name begins with.

    Returns:
        The figure, a view for each group; None if no curve has two points.
    """
    data: list[dict[str, Any]] = []
    kinds: dict[str, tuple[bool, bool]] = {}
    for group, curves in groups.items():
        there = {
            curve: [row for row in rows if row.get("validation_loss") is not None]
            for curve, rows in curves.items()
        }
        there = {curve: rows for curve, rows in there.items() if len(rows) > 1}
        by_tokens = all(row.get("tokens") is not None for rows in there.values() for row in rows)
        axis = "tokens" if by_tokens else "step"
        points = [
            {
                "group": group,
                "method": _method(curve, style),
                "curve": curve,
                "x": row[axis],
                "loss": row["validation_loss"],
            }
            for curve, rows in there.items()
            if all(row.get(axis) is not None for row in rows)
            for row in rows
        ]
        if points:
            losses = [point["loss"] for point in points]
            kinds[group] = (by_tokens, min(losses) > 0 and max(losses) > 20 * min(losses))
            data += points
    if not data:
        return None

    def drawn(group: str) -> Any:
        shown = list(dict.fromkeys(row["method"] for row in data if row["group"] == group))
        return lambda width: _curves(width, group, shown, *kinds[group], style)

    return Figure(
        name=f"loss-{name}",
        caption=f"{name}: validation loss in training. Losses of different targets or objectives "
        "are on different scales and do not compare.",
        data={"rows": data},
        views=[view(group, drawn(group), group if len(kinds) > 1 else "") for group in kinds],
        switch="target",
        half=True,
    )


def _method(curve: str, style: Style) -> str:
    fitting = [name for name in style.methods if curve.startswith(name)]
    return max(fitting, key=len, default=DENSE if not style.methods else curve)


def _curves(
    width: int, group: str, shown: Sequence[str], by_tokens: bool, log: bool, style: Style
) -> Spec:
    title = "training tokens" if by_tokens else "steps"
    lines = mark(
        "line",
        {"strokeWidth": 2, "point": {"size": 30}, "where": [only("group", group)]},
        x=number("x", title=title, axis={"grid": False, "format": "~s", "tickCount": 6}),
        y=number(
            "loss",
            title="validation loss",
            scale={"type": "log"} if log else {"zero": False},
            axis={"tickCount": 5},
        ),
        color=style.colour(shown, "bottom"),
        detail=word("curve"),
        opacity=FAINT,
        tooltip=[word("curve"), number("x", title=title, format=","), number("loss", format=".4g")],
    )
    return lines | {"params": [CHOICE], "width": width - 80, "height": 300}
