"""What became of each task's answers: kept, lost and gained, in small multiples.

Example::

    figure = answers_figure(rows)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamline.report.figures.figure import WIDE, Figure, view
from streamline.report.figures.measures import LABEL, name_room, sparsity_text
from streamline.report.figures.style import GAINED, INK, KEPT, LOST
from streamline.report.findings.rows import Row
from streamline.results.averages import collapsed_tasks

if TYPE_CHECKING:
    import altair as alt

__all__ = ["answers_figure"]

_KINDS = ("lost", "kept", "gained")


def answers_figure(rows: Sequence[Row]) -> Figure | None:
    """Bars for each task and method; of several seeds the first.

    Args:
        rows: Of one model.

    Returns:
        The figure, a view for each sparsity; None if no record counts them.
    """
    data = [bar for row in rows if row.done and not row.dense for bar in _bars(row)]
    if not data:
        return None
    tasks = list(dict.fromkeys(bar["task"] for bar in data))
    targets = list(dict.fromkeys(bar["target"] for bar in data))
    names = {
        target: list(dict.fromkeys(bar["method"] for bar in data if bar["target"] == target))
        for target in targets
    }
    model = rows[0].model

    def drawn(target: str) -> Any:
        return lambda width: _panels(width, target, names[target], tasks)

    return Figure(
        name=f"answers-{model}",
        caption=f"{model}: answers by task, in percent of its questions. Right of the line: right "
        "before and after (kept), or only after (gained); left of it: right only before (lost). "
        "The right end is the accuracy.",
        data={"rows": data},
        views=[
            view(target, drawn(target), _file(target) if len(targets) > 1 else "", WIDE)
            for target in targets
        ],
        switch="target",
    )


def _file(target: str) -> str:
    return target.removesuffix(" %")


def _bars(row: Row) -> list[dict[str, Any]]:
    bars = []
    for task, result in collapsed_tasks(row.records[0]).items():
        counts = result.extra("counts")
        if not isinstance(counts, dict) or not result.n or None in counts.values():
            continue
        kept, lost, gained = (counts.get(k) for k in ("both_right", "lost", "gained"))
        if kept is None or lost is None or gained is None:
            continue
        ends = {"lost": (-lost, 0), "kept": (0, kept), "gained": (kept, kept + gained)}
        bars += [
            {
                "method": row.method,
                "target": sparsity_text(row.sparsity),
                "task": task.removeprefix("streamline_"),
                "kind": kind,
                "from": round(100 * ends[kind][0] / result.n, 3),
                "to": round(100 * ends[kind][1] / result.n, 3),
                "count": ends[kind][1] - ends[kind][0],
                "n": result.n,
            }
            for kind in _KINDS
        ]
    return bars


def _panels(
    width: int, target: str, order: Sequence[str], tasks: Sequence[str]
) -> alt.TopLevelMixin:
    import altair as alt

    narrow = width < 500
    columns = 1 if narrow else 3
    room = name_room(order, width)
    each = (width - room) // columns - (10 if narrow else 24)
    broken = any("+" in name for name in order)
    scale = alt.Scale(domain=list(_KINDS), range=[LOST, KEPT, GAINED])
    legend = alt.Legend(title=None, orient="top", labelFontSize=12)
    x_axis = alt.Axis(title="% of questions", grid=True, tickCount=4)

    def panel(index: int, task: str) -> Any:
        first = index % columns == 0
        y_axis = alt.Axis(
            title=None, labels=first, labelExpr=LABEL, labelLimit=room, ticks=False, domain=False
        )
        bars = (
            alt.Chart(alt.NamedData("rows"))
            .mark_bar(height={"band": 0.7})
            .transform_filter((alt.datum.target == target) & (alt.datum.task == task))
            .encode(
                y=alt.Y("method:N", sort=list(order), axis=y_axis),
                x=alt.X("from:Q", axis=x_axis),
                x2="to:Q",
                color=alt.Color("kind:N", scale=scale, legend=legend),
                tooltip=["method:N", "task:N", "kind:N", "count:Q", alt.Tooltip("n:Q", title="of")],
            )
        )
        zero = alt.Chart(alt.InlineData([{}])).mark_rule(color=INK).encode(x=alt.datum(0))
        height = (32 if broken else 19) * len(order)
        return alt.layer(bars, zero, title=task).properties(width=each, height=height)

    panels = [panel(index, task) for index, task in enumerate(tasks)]
    together: alt.ConcatChart = alt.concat(*panels, columns=columns, spacing=18).resolve_scale(
        x="shared", y="shared"
    )
    return together
