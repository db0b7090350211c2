"""A summary measure at each sparsity, with its interval: by method as dots, by sparsity as lines.

Example::

    figure = measure_figure(rows, "stability", style)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamline.report.figures.figure import Figure, View, view
from streamline.report.figures.style import INK, SOFT, Style
from streamline.report.findings.rows import Row
from streamline.report.table import percent

if TYPE_CHECKING:
    import altair as alt

__all__ = ["LABEL", "MEASURES", "measure_figure", "name_room", "sparsity_text"]

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

    def dots(width: int) -> alt.TopLevelMixin:
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


def _tooltip() -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("method:N"),
        alt.Tooltip("target:N"),
        alt.Tooltip("text:N", title="value ± standard error"),
    ]


def _dots(
    width: int,
    title: str,
    order: Sequence[str],
    targets: Sequence[str],
    dense: bool,
    style: Style,
) -> alt.TopLevelMixin:
    import altair as alt

    columns = 1 if width < 400 else min(3, len(targets))
    each = max(120, (width - columns * 12 - name_room(order, width) - 20) // columns)
    broken = any("+" in name for name in order)
    axis = alt.Axis(title=None, labelExpr=LABEL, labelLimit=name_room(order, width), grid=True)
    y = alt.Y("method:N", sort=list(order), axis=axis)
    base = alt.Chart(alt.NamedData("rows"))
    marks = [
        base.mark_rule(strokeWidth=2).encode(
            y=y, x=alt.X("low:Q"), x2="high:Q", color=style.colour(order)
        ),
        base.mark_point(size=70).encode(
            y=y,
            x=alt.X("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(grid=False)),
            color=style.colour(order),
            shape=style.shape(order),
            tooltip=_tooltip(),
        ),
    ]
    if dense:
        marks.insert(0, base.mark_rule(strokeDash=[5, 4], color=INK).encode(x="mean(dense):Q"))
    height = (_LINE_HEIGHT + (10 if broken else 0)) * len(order)
    layers = alt.layer(*marks).properties(width=each, height=height)
    if len(targets) == 1:
        return layers
    facet = alt.Facet("target:N", sort=list(targets), title=None)
    return layers.facet(facet=facet, columns=columns)


def _lines(
    width: int, title: str, order: Sequence[str], targets: Sequence[str], style: Style
) -> alt.TopLevelMixin:
    import altair as alt

    chosen = alt.selection_point(fields=["method"], bind="legend")
    x = alt.X(
        "target:N",
        sort=list(targets),
        title="target sparsity",
        axis=alt.Axis(labelAngle=0, grid=False),
        scale=alt.Scale(padding=0.6),
    )
    offset = alt.XOffset("method:N", sort=list(order))
    faint = alt.condition(chosen, alt.value(1), alt.value(0.12))
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=x, xOffset=offset, color=style.colour(order, "bottom")
    )
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(titleColor=SOFT))
    return alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, opacity=faint),
        base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q", opacity=faint),
        base.mark_point(size=70)
        .encode(y=y, shape=style.shape(order, "bottom"), opacity=faint, tooltip=_tooltip())
        .add_params(chosen),
    ).properties(width=width - 70, height=330)
