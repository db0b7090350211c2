"""What became of each task's answers: kept, lost and gained, in small multiples.

Example::

    figure = answers_figure(rows)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamline.report.figures.figure import WIDE, Figure, Spec, mark, number, only, view, word
from streamline.report.figures.measures import LABEL, name_lines, name_room, sparsity_text
from streamline.report.figures.style import GAINED, KEPT, LOST
from streamline.report.findings.rows import Row
from streamline.results.averages import collapsed_tasks

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


def _panels(width: int, target: str, order: Sequence[str], tasks: Sequence[str]) -> Spec:
    narrow = width < 500
    columns = 1 if narrow else 3
    room = name_room(order, width)
    size = {
        "width": (width - room) // columns - (10 if narrow else 24),
        "height": (6 + 13 * name_lines(order)) * len(order),
    }
    x = number("from", axis={"title": "% of questions", "grid": True, "tickCount": 4})
    colour = word(
        "kind",
        scale={"domain": list(_KINDS), "range": [LOST, KEPT, GAINED]},
        legend={"title": None, "orient": "top"},
    )
    tooltip = [word("method"), word("task"), word("kind"), number("count"), number("n", title="of")]
    panels = []
    for index, task in enumerate(tasks):
        axis = {
            "title": None,
            "labels": index % columns == 0,
            "labelExpr": LABEL,
            "labelLimit": room,
            "ticks": False,
            "domain": False,
        }
        y = word("method", sort=list(order), axis=axis)
        look = {"height": {"band": 0.7}, "where": [only("target", target), only("task", task)]}
        bars = mark("bar", look, y=y, x=x, x2="to", color=colour, tooltip=tooltip)
        zero = {"data": {"values": [{}]}, "mark": {"type": "rule"}, "encoding": {"x": {"datum": 0}}}
        panels.append({"title": task, "layer": [bars, zero], **size})
    shared = {"scale": {"x": "shared", "y": "shared"}}
    return {"concat": panels, "columns": columns, "spacing": 18, "resolve": shared}
