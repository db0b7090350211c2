"""How figures are drawn: quiet axes, lines named at their ends, the same bytes each time.

Lines carry their names at their ends instead of a legend; colours are distinguishable by
colour-blind readers, and markers differ as well. All text and axes are drawn in one ink, ``INK``,
which a page may replace by its own text colour.

Example::

    axes = axes_with("target sparsity", "accuracy, %")
    draw_lines(axes, [("shortgpt", [0.1, 0.25], [47.0, 39.5])])
    svg = svg_text(axes, "accuracy")
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["INK", "Series", "axes_with", "draw_lines", "moved_apart", "svg_text"]

INK = "#1a1a1b"
# Okabe and Ito's colours without yellow, which is lost on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SIZE = (6.0, 3.9)
# In inches: a name's line, and the fraction of a figure's height that the axes fill.
_NAME_HEIGHT = 0.186
_AXES_FRACTION = 0.77

Series = tuple[str, Sequence[float], Sequence[float]]
"""A line: its name, then x and y of its points."""


def axes_with(x_label: str, y_label: str, size: tuple[float, float] = _SIZE) -> Axes:
    """Empty axes with quiet lines and no frame."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.set_xlabel(x_label, color=INK, fontsize=12)
    axes.set_ylabel(y_label, color=INK, fontsize=12)
    axes.tick_params(colors=INK, labelsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    return axes


def draw_lines(axes: Axes, lines: Sequence[Series], markers: bool = True) -> list[str]:
    """Lines with their names at their right ends; returns their colours.

    The figure grows with the number of names, so that they fit beside the axes.
    """
    figure = axes.get_figure()
    assert figure is not None
    height = max(_SIZE[1], _NAME_HEIGHT * (len(lines) + 1) / _AXES_FRACTION)
    figure.set_size_inches(_SIZE[0], height)  # type: ignore[union-attr]
    colours = [_COLOURS[number % len(_COLOURS)] for number in range(len(lines))]
    styles = ["-", "--", ":"]
    for number, (_, x, y) in enumerate(lines):
        axes.plot(
            x,
            y,
            color=colours[number],
            linestyle=styles[number // len(_COLOURS) % len(styles)],
            marker=_MARKERS[number % len(_MARKERS)] if markers else "",
            markersize=6,
            linewidth=2,
        )
    axes.autoscale_view()
    ends = [axes.transData.transform((x[-1], y[-1]))[1] for _, x, y in lines]
    box = axes.get_window_extent()
    heights = moved_apart(
        [(end - box.y0) / box.height for end in ends], _NAME_HEIGHT / (_AXES_FRACTION * height)
    )
    for (name, x, y), name_y, colour in zip(lines, heights, colours, strict=True):
        axes.annotate(
            name,
            (x[-1], y[-1]),
            xytext=(1.04, name_y),
            textcoords="axes fraction",
            va="center",
            ha="left",
            color=INK,
            fontsize=11,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 1.2,
                "relpos": (0, 0.5),
            },
        )
    return colours


def moved_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights at least ``gap`` apart, in their order, within [0, 1] if they fit.

    Args:
        heights: Where names would stand, as fractions of the axes' height.
        gap: The least distance between two names.

    Returns:
        The heights, moved as little as the gap needs.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for _ in range(200):
        still = True
        for low, high in zip(order, order[1:], strict=False):
            missing = gap - (moved[high] - moved[low])
            if missing > 1e-9:
                moved[low] -= missing / 2
                moved[high] += missing / 2
                still = False
        bottom, top = moved[order[0]], moved[order[-1]]
        shift = max(0.0, -bottom) if top - bottom > 1 or top <= 1 else 1 - top
        moved = [height + shift for height in moved] if abs(shift) > 1e-9 else moved
        if still:
            break
    return moved


def svg_text(axes: Axes, salt: str) -> str:
    """The figure as SVG text: letters as text, no date, ids that depend on the figure alone."""
    import matplotlib

    figure = axes.get_figure()
    assert figure is not None
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(  # type: ignore[union-attr]
            sink, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    return re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", sink.getvalue())
