"""Figures of a run as SVG text, the same bytes for the same records.

Lines carry their names at their ends instead of a legend; colours are told apart by colour-blind
readers, and markers differ as well. All text and axes are drawn in one ink, ``INK``, which a page
may replace by its own text colour.

Example::

    svg = sparsity_figure(load("out"), "accuracy")
    write_text_atomic("figures/accuracy.svg", svg)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.report.frames import sort_records
from streamline.results.answers import Floats
from streamline.results.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "INK",
    "cosine_heatmap",
    "layer_cosine_figure",
    "loss_figure",
    "size_figure",
    "sparsity_figure",
]

INK = "#1a1a1b"
# Okabe and Ito's colours without yellow, which is lost on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SIZE = (6.0, 3.9)
# In inches: a name's line, and the share of a figure's height that the axes take.
_NAME_HEIGHT = 0.186
_AXES_SHARE = 0.77
_NAMES = {
    "accuracy": "average accuracy, %",
    "relative_accuracy": "relative accuracy, %",
    "stability": "stability, %",
}

Series = tuple[str, Sequence[float], Sequence[float]]


def sparsity_figure(records: Sequence[Record], measure: str = "accuracy") -> str | None:
    """A summary measure against the sparsity asked for, one line for each method.

    Args:
        records: Of one model; where a cell has several seeds, the line runs through their mean.
        measure: ``accuracy``, ``relative_accuracy`` or ``stability``.

    Returns:
        SVG text, or None if no method has a figure.
    """
    points = _means(records, measure, lambda record: record.sparsity)
    dense = _dense_value(points)
    lines = [item for item in points if item[0] != "dense"]
    if not lines:
        return None
    axes = _axes("sparsity asked for", _NAMES[measure])
    if dense is not None and measure != "stability":
        _dense_line(axes, 100 * dense)
    asked = sorted({place for _, x, _ in lines for place in x})
    if len(asked) <= 8:
        axes.set_xticks(asked, [f"{place:g}" for place in asked])
    _draw(axes, [(name, x, [100 * value for value in y]) for name, x, y in lines])
    return _svg(axes, f"{measure}-{_model(records)}")


def size_figure(records: Sequence[Record], measure: str = "accuracy") -> str | None:
    """A summary measure against the share of parameters really removed.

    Args:
        records: Of one model.
        measure: As in ``sparsity_figure``.

    Returns:
        SVG text, or None if nothing was measured.
    """
    points = _means(records, measure, lambda record: record.parameters.removed_fraction)
    lines = [
        (name, [100 * value for value in x], [100 * value for value in y])
        for name, x, y in points
        if name != "dense"
    ]
    if not lines:
        return None
    axes = _axes("parameters removed, %", _NAMES[measure])
    dense = _dense_value(points)
    if dense is not None and measure != "stability":
        _dense_line(axes, 100 * dense)
    _draw(axes, lines)
    return _svg(axes, f"{measure}-size-{_model(records)}")


def loss_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Validation loss against training tokens, one line for each replacement.

    Args:
        curves: Name -> evaluations with ``validation_loss`` and ``tokens`` or else ``step``; rows
            without a validation loss are left out.

    Returns:
        SVG text, or None if no curve has two points.
    """
    from matplotlib.ticker import EngFormatter

    kept = {
        name: [row for row in rows if row.get("validation_loss") is not None]
        for name, rows in curves.items()
    }
    kept = {name: rows for name, rows in kept.items() if len(rows) > 1}
    if not kept:
        return None
    by_tokens = all(row.get("tokens") is not None for rows in kept.values() for row in rows)
    field = "tokens" if by_tokens else "step"
    axes = _axes("training tokens" if by_tokens else "steps", "validation loss")
    lines = [
        (name, [row[field] for row in rows], [row["validation_loss"] for row in rows])
        for name, rows in kept.items()
        if all(row.get(field) is not None for row in rows)
    ]
    values = [value for _, _, y in lines for value in y]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    if by_tokens:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    _draw(axes, lines, markers=False)
    return _svg(axes, "loss")


def cosine_heatmap(cosine: Floats, name: str = "") -> str:
    """Mean token cosine between every two depths; depth 0 is the input of layer 0.

    Args:
        cosine: [L + 1, L + 1].
        name: Of the model, for the salt of the file's ids.

    Returns:
        SVG text.
    """
    axes = _axes("depth", "depth", size=(4.6, 3.9))
    mesh = axes.imshow(
        cosine,
        cmap="cividis",
        vmin=min(0.0, float(cosine.min())),
        vmax=1.0,
        interpolation="nearest",
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(mesh, ax=axes)
    bar.outline.set_visible(False)
    bar.set_label("mean cosine", color=INK, fontsize=12)
    bar.ax.tick_params(colors=INK, labelsize=11)
    return _svg(axes, f"cosine-{name}")


def layer_cosine_figure(cosine: Floats, lengths: Sequence[int], name: str = "") -> str:
    """Cosine across every span of some lengths, by the span's first layer; the best is marked.

    Args:
        cosine: [L + 1, L + 1].
        lengths: Numbers of layers; those that do not fit are left out.
        name: Of the model.

    Returns:
        SVG text.
    """
    axes = _axes("first layer of the span", "cosine of its input and output")
    lines: list[Series] = []
    for length in [length for length in lengths if 1 <= length < len(cosine)]:
        values = np.diagonal(cosine, length)
        words = "1 layer" if length == 1 else f"{length} layers"
        lines.append((words, list(range(len(values))), values.tolist()))
    colours = _draw(axes, lines, markers=False)
    for (_, x, y), colour in zip(lines, colours, strict=True):
        best = int(np.argmax(y))
        axes.plot([x[best]], [y[best]], marker="o", color=colour, markersize=7)
    return _svg(axes, f"layers-{name}")


def _means(
    records: Sequence[Record], measure: str, place: Callable[[Record], float | None]
) -> list[Series]:
    """(method, x, mean y) over the finished cells, x ascending."""
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for record in sort_records(records):
        x, y = place(record), getattr(record.summary, measure)
        if record.status != "ok" or x is None or y is None:
            continue
        name = record.method + ("" if record.recovery == "none" else f" +{record.recovery}")
        found.setdefault(name, {}).setdefault(record.sparsity, []).append((x, y))
    series: list[Series] = []
    for name, cells in found.items():
        means = sorted(tuple(np.mean(points, axis=0).tolist()) for points in cells.values())
        series.append((name, [x for x, _ in means], [y for _, y in means]))
    return series


def _axes(x_label: str, y_label: str, size: tuple[float, float] = _SIZE) -> Axes:
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


def _dense_value(points: Sequence[Series]) -> float | None:
    return next((y[0] for name, _, y in points if name == "dense"), None)


def _dense_line(axes: Axes, value: float) -> None:
    axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "dense",
        (0.01, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=INK,
        fontsize=11,
    )


def _draw(axes: Axes, lines: Sequence[Series], markers: bool = True) -> list[str]:
    """Lines with their names at their right ends; returns their colours.

    The figure grows with the number of names, so that they stand beside the axes.
    """
    figure = axes.get_figure()
    assert figure is not None
    height = max(_SIZE[1], _NAME_HEIGHT * (len(lines) + 1) / _AXES_SHARE)
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
    heights = _spread(
        [(end - box.y0) / box.height for end in ends], _NAME_HEIGHT / (_AXES_SHARE * height)
    )
    for (name, x, y), place, colour in zip(lines, heights, colours, strict=True):
        axes.annotate(
            name,
            (x[-1], y[-1]),
            xytext=(1.04, place),
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


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved apart to at least ``gap``, in their order, within [0, 1] if they fit."""
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


def _svg(axes: Axes, salt: str) -> str:
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


def _model(records: Sequence[Record]) -> str:
    return records[0].model if records else ""
