"""How figures look: one colour and one shape for each method, quiet axes, any background.

Colours are distinguishable by colour-blind readers on light and on dark; beyond seven methods they
repeat with other shapes, and a name stands wherever a colour does.

Example::

    style = Style(["shortgpt", "llm-streamline-ffn"])
    mark("point", color=style.colour(), shape=style.shape())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "DENSE", "GAINED", "INK", "KEPT", "LINE", "LOST", "PAGE", "SOFT", "Channel", "Style", "config",
]  # fmt: skip

Channel = dict[str, Any]
"""How a channel of a mark follows a field, in Vega-Lite."""

# Replaced in pages by the page's own, which follow light and dark.
PAGE, INK, SOFT, LINE = "#ffffff", "#1a1a1b", "#5a5d63", "#d9dbdf"
KEPT, LOST, GAINED = "#0072b2", "#d55e00", "#009e73"
DENSE = "dense"

# Okabe and Ito's colours without yellow, which is lost on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


class Style:
    """The colours and shapes of a report's methods, by their order of appearance."""

    def __init__(self, methods: Sequence[str]) -> None:
        """Give each method its own.

        Args:
            methods: Labels, the dense model's left out.
        """
        self.methods = [name for name in dict.fromkeys(methods) if name != DENSE]

    def colour_of(self, method: str) -> str:
        """The colour of one method; ink for one that is not known, such as the dense model."""
        if method not in self.methods:
            return INK
        return _COLOURS[self.methods.index(method) % len(_COLOURS)]

    def colour(self, shown: Sequence[str] | None = None, legend: str | None = None) -> Channel:
        """The colour of the field ``method``.

        Args:
            shown: The methods that are in the figure; by default all.
            legend: Where the legend stands, ``right`` or ``bottom``; None for none.
        """
        domain = list(self.methods if shown is None else shown)
        return _scaled(domain, [self.colour_of(name) for name in domain], legend)

    def shape(self, shown: Sequence[str] | None = None, legend: str | None = None) -> Channel:
        """The shape of the field ``method``, with arguments as for ``colour``."""
        domain = list(self.methods if shown is None else shown)
        places = [self.methods.index(name) if name in self.methods else 0 for name in domain]
        marks = [_SHAPES[(i + i // len(_COLOURS)) % len(_SHAPES)] for i in places]
        return _scaled(domain, marks, legend)


def _scaled(domain: list[str], values: list[str], legend: str | None) -> Channel:
    place = {"orient": legend, "columns": 1 if legend == "right" else 2}
    look = {"title": None, "labelLimit": 260, "symbolSize": 70, "symbolStrokeWidth": 0}
    return {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": domain, "range": values},
        "legend": None if legend is None else place | look,
    }


def config() -> dict[str, Any]:
    """The look that all figures share, as a block of Vega-Lite.

    One weight of one font: with two, ``vl-convert`` writes a PDF's objects in any order.
    """
    axis = {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": SOFT,
        "tickColor": SOFT,
        "gridColor": LINE,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 300,
    }
    return {
        "background": PAGE,
        "font": _FONT,
        "lineBreak": "\n",
        "view": {"stroke": None},
        "axis": axis,
        "header": {
            "labelColor": INK,
            "labelFontSize": 13,
            "labelFontWeight": "normal",
            "title": None,
        },
        "legend": {
            "labelColor": INK,
            "titleColor": INK,
            "labelFontSize": 12,
            "titleFontWeight": "normal",
        },
        "title": {"color": INK, "fontSize": 13, "fontWeight": "normal"},
        "text": {"color": INK, "fontSize": 12},
        "rule": {"color": INK},
        "point": {"opacity": 1, "filled": True},
        "rect": {"opacity": 1},
        "bar": {"opacity": 1},
    }
