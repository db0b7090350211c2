"""The figure that a paper opens with: the share of the dense accuracy that each method keeps.

A suite's ``report`` block says whose methods are the paper's own, and by how much they are
printed to lead::

    report:
      headline: {ours: llm-streamline, published: 11.2}     # the beginning of their names; points

Example::

    figure = headline_figure(rows, {"ours": "llm-streamline", "published": 11.2}, style)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamline.report.figures.figure import Figure
from streamline.report.figures.measures import measure_figure, sparsity_text
from streamline.report.figures.style import Style
from streamline.report.findings.rows import Row

__all__ = ["headline_figure"]


def headline_figure(
    rows: Sequence[Row], headline: Mapping[str, Any], style: Style
) -> Figure | None:
    """The relative accuracy of each method, and by how much the paper's own lead.

    Args:
        rows: Of one model.
        headline: As in the module's description.
        style: The methods' colours.

    Returns:
        The figure; None if no relative accuracy is known.
    """
    figure = measure_figure(rows, "relative", style)
    if figure is None:
        return None
    kept = [row for row in rows if row.relative is not None and not row.dense]
    targets = list(dict.fromkeys(row.sparsity for row in kept))
    said = []
    for target in targets:
        ours, others = (
            [
                row
                for row in kept
                if row.sparsity == target and row.method.startswith(str(headline["ours"])) == own
            ]
            for own in (True, False)
        )
        if ours and others:
            best, other = max(ours, key=_share), max(others, key=_share)
            where = f"at {sparsity_text(target)} " if len(targets) > 1 else ""
            gap = 100 * (_share(best) - _share(other))
            said.append(f"{where}{best.method} leads {other.method} by {gap:.1f} points")
    said.append(f"printed: {headline['published']:g} points")
    caption = f"{figure.caption} Of the paper's own methods the best beside the best of the others"
    return replace(
        figure, name=f"headline-{rows[0].model}", caption=f"{caption}: {'; '.join(said)}."
    )


def _share(row: Row) -> float:
    return 0.0 if row.relative is None else row.relative.value
