"""Figures of a run as SVG text, the same bytes for the same records.

Example::

    svg = sparsity_figure(load("out"), "accuracy")
    write_text_atomic("figures/accuracy.svg", svg)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.report.drawing import INK, Series, axes_with, draw_lines, svg_text
from streamline.report.frames import sort_records
from streamline.results.answers import Floats
from streamline.results.record import Record, method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "cosine_heatmap",
    "layer_cosine_figure",
    "loss_figure",
    "size_figure",
    "sparsity_figure",
]

_NAMES = {
    "accuracy": "average accuracy, %",
    "relative_accuracy": "relative accuracy, %",
    "stability": "stability, %",
}


def sparsity_figure(records: Sequence[Record], measure: str = "accuracy") -> str | None:
    """A summary measure against the target sparsity, one line for each method.

    Args:
        records: Of one model; where a cell has many seeds, the line runs through their mean.
        measure: ``accuracy``, ``relative_accuracy`` or ``stability``.

    Returns:
        SVG text, or None if no method was measured.
    """
    points = _means(records, measure, lambda record: record.sparsity)
    dense = _dense_value(points)
    lines = [item for item in points if item[0] != "dense"]
    if not lines:
        return None
    axes = axes_with("target sparsity", _NAMES[measure])
    if dense is not None and measure != "stability":
        _dense_line(axes, 100 * dense)
    targets = sorted({value for _, x, _ in lines for value in x})
    if len(targets) <= 8:
        axes.set_xticks(targets, [f"{value:g}" for value in targets])
    draw_lines(axes, [(name, x, [100 * value for value in y]) for name, x, y in lines])
    return svg_text(axes, f"{measure}-{_model(records)}")


def size_figure(records: Sequence[Record], measure: str = "accuracy") -> str | None:
    """A summary measure against the fraction of parameters really removed.

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
    axes = axes_with("parameters removed, %", _NAMES[measure])
    dense = _dense_value(points)
    if dense is not None and measure != "stability":
        _dense_line(axes, 100 * dense)
    draw_lines(axes, lines)
    return svg_text(axes, f"{measure}-size-{_model(records)}")


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
    axes = axes_with("training tokens" if by_tokens else "steps", "validation loss")
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
    draw_lines(axes, lines, markers=False)
    return svg_text(axes, "loss")


def cosine_heatmap(cosine: Floats, name: str = "") -> str:
    """Mean token cosine between every two depths; depth 0 is the input of layer 0.

    Args:
        cosine: [L + 1, L + 1].
        name: Of the model, for the salt of the file's ids.

    Returns:
        SVG text.
    """
    axes = axes_with("depth", "depth", size=(4.6, 3.9))
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
    return svg_text(axes, f"cosine-{name}")


def layer_cosine_figure(cosine: Floats, lengths: Sequence[int], name: str = "") -> str:
    """Cosine across every span of some lengths, by the span's first layer; the best is marked.

    Args:
        cosine: [L + 1, L + 1].
        lengths: Numbers of layers; those that do not fit are left out.
        name: Of the model.

    Returns:
        SVG text.
    """
    axes = axes_with("first layer of the span", "cosine of its input and output")
    lines: list[Series] = []
    for length in [length for length in lengths if 1 <= length < len(cosine)]:
        values = np.diagonal(cosine, length)
        words = "1 layer" if length == 1 else f"{length} layers"
        lines.append((words, list(range(len(values))), values.tolist()))
    colours = draw_lines(axes, lines, markers=False)
    for (_, x, y), colour in zip(lines, colours, strict=True):
        best = int(np.argmax(y))
        axes.plot([x[best]], [y[best]], marker="o", color=colour, markersize=7)
    return svg_text(axes, f"layers-{name}")


def _means(
    records: Sequence[Record], measure: str, x_of: Callable[[Record], float | None]
) -> list[Series]:
    """(method, x, mean y) over the finished cells, x ascending."""
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for record in sort_records(records):
        x, y = x_of(record), getattr(record.summary, measure)
        if record.status != "ok" or x is None or y is None:
            continue
        name = method_label(record.method, record.recovery)
        found.setdefault(name, {}).setdefault(record.sparsity, []).append((x, y))
    series: list[Series] = []
    for name, cells in found.items():
        means = sorted(tuple(np.mean(points, axis=0).tolist()) for points in cells.values())
        series.append((name, [x for x, _ in means], [y for _, y in means]))
    return series


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


def _model(records: Sequence[Record]) -> str:
    return records[0].model if records else ""
