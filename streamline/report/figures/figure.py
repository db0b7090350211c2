"""A figure: its data, and one drawing of them or several to choose from.

Each view is drawn twice, wide and for a phone. In a page the data stand once and the views are
drawn by Vega in the reader's browser; for papers each view is an SVG and a PDF file, made from the
same data by ``vl-convert`` without a browser. Texts in the data are values, never expressions.

Example::

    figure = Figure(name="stability", caption="Stability", data={"rows": rows}, views=[view])
    write_bytes_atomic("stability.pdf", pdf(svg(figure, view)))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from streamline.report.figures.style import INK, LINE, PAGE, SOFT, config
from streamline.report.names import slug
from streamline.report.table import plain

__all__ = [
    "CHOICE", "FAINT", "WIDE", "Drawn", "Figure", "Spec", "View", "drawn", "in_page", "mark",
    "number", "only", "page_json", "script", "svg", "view", "word",
]  # fmt: skip

WIDE, HALF, NARROW = 1060, 520, 340
"""Pixels that a drawing may fill, names included: a page, half of one, a phone."""

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_NO_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")

_RESOURCES = re.compile(rb"<<\n((?: +/[A-Za-z]+\d+ \d+ 0 R\n)+)")

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]
"""A part of a chart in Vega-Lite."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One drawing: a name for files, a label for the switch, and Vega-Lite for both widths."""

    name: str
    label: str
    wide: Mapping[str, Any]
    narrow: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: For files and links; made one for them.
        given: The name as it was given.
        caption: What it shows, in words.
        data: Name -> rows; the views' charts name them.
        views: The first is shown; a reader may switch.
        switch: What is chosen by the switch, such as ``across``.
        half: Whether two such figures stand side by side where there is room.
    """

    name: str
    caption: str
    data: Mapping[str, Rows]
    views: Sequence[View]
    switch: str = "show"
    half: bool = False
    given: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make its name one for files, and take control characters out of texts."""
        put = object.__setattr__
        put(self, "given", self.name)
        put(self, "name", slug(self.name))
        put(self, "caption", plain(self.caption))
        put(self, "data", _clean(self.data))

    def file_of(self, one: View) -> str:
        """The name of a view's files, without their ending."""
        return slug("-".join(word for word in (self.name, one.name) if word))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A view of a figure as SVG and PDF."""

    figure: Figure
    view: View
    svg: str
    pdf: bytes

    @property
    def file(self) -> str:
        """The name of its files, without their ending."""
        return self.figure.file_of(self.view)


def view(label: str, draw: Callable[[int], Spec], name: str = "", width: int = HALF) -> View:
    """A view from what draws it, as Vega-Lite, at a width in pixels."""
    wide, narrow = ({"$schema": _SCHEMA, **draw(room)} for room in (width, NARROW))
    return View(name=name, label=plain(label), wide=_clean(wide), narrow=_clean(narrow))


def mark(kind: str, look: Spec | None = None, /, **channels: Any) -> Spec:
    """A layer: a mark of a kind and look, its channels following fields.

    Args:
        kind: Of the mark, such as ``point``.
        look: Further properties of the mark; ``data`` and ``where`` name the data and say which of
            them are drawn, as :func:`only` does.
        channels: Each as Vega-Lite writes it, or the name of a field with numbers.
    """
    rest = dict(look or {})
    layer: Spec = {"data": {"name": rest.pop("data", "rows")}}
    chosen = rest.pop("where", None)
    if chosen is not None:
        layer["transform"] = [{"filter": one} for one in chosen]
    fields = {
        name: {"field": channel} if isinstance(channel, str) else channel
        for name, channel in channels.items()
    }
    return layer | {"mark": {"type": kind, **rest}, "encoding": fields}


def number(field: str, **more: Any) -> Spec:
    """A channel that follows numbers."""
    return {"field": field, "type": "quantitative", **more}


def word(field: str, **more: Any) -> Spec:
    """A channel that follows words."""
    return {"field": field, "type": "nominal", **more}


def only(field: str, *values: Any) -> Spec:
    """What keeps the rows with one of some values; values are data, never an expression."""
    return {"field": field, "oneOf": list(values)}


CHOICE = {"name": "chosen", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}
"""Choosing methods in the legend."""

FAINT = {"condition": {"param": "chosen", "empty": True, "value": 1}, "value": 0.12}
"""The opacity of what is chosen, and of the rest."""


def svg(figure: Figure, one: View) -> str:
    """A view as an SVG file: letters as text, the same bytes each time."""
    text = _as_svg(json.dumps({**one.wide, "datasets": figure.data, "config": config()}))
    ids: dict[str, str] = {}  # the library counts on from one figure to the next
    for found in re.findall(r'(?:id="|url\(#)((?:clip|gradient_?)\d+)', text):
        ids.setdefault(found, f"{figure.file_of(one)}.{len(ids)}")
    return re.sub(r'(id="|url\(#)((?:clip|gradient_?)\d+)', lambda m: m[1] + ids[m[2]], text)


@lru_cache(maxsize=64)
def _as_svg(spec: str) -> str:
    """A specification as the library draws it; a report that is made again draws nothing twice."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(json.loads(spec)))  # its own parser loses last digits


def drawn(figure: Figure) -> list[Drawn]:
    """Each view of a figure as files."""
    found = []
    for one in figure.views:
        text = svg(figure, one)
        found.append(Drawn(figure=figure, view=one, svg=text, pdf=pdf(text)))
    return found


@lru_cache(maxsize=64)
def pdf(text: str) -> bytes:
    """An SVG file as PDF, its letters embedded, the same bytes each time.

    But for signs that the figures' font lacks: with a second font the library writes its objects
    in any order.
    """
    import vl_convert

    found = bytes(vl_convert.svg_to_pdf(text))
    # The library lists what a page uses in any order; sorted, every object stays where it is.
    return _RESOURCES.sub(lambda m: b"<<\n" + b"".join(sorted(m[1].splitlines(True))), found)


def page_json(figures: Sequence[Figure]) -> str:
    """Figures for the page's script: data once, views for both widths, in the page's colours."""
    found = {
        figure.name: {
            "data": figure.data,
            "views": [{"wide": one.wide, "narrow": one.narrow} for one in figure.views],
        }
        for figure in figures
    }
    return in_page(json.dumps({"config": config(), "figures": found}, allow_nan=False))


def in_page(text: str) -> str:
    """A drawing in the page's own colours, which follow light and dark."""
    for ours, theirs in (
        (PAGE, "var(--page)"),
        (INK, "currentColor"),
        (SOFT, "var(--soft)"),
        (LINE, "var(--line)"),
    ):
        text = text.replace(ours, theirs)
    return text


@lru_cache(maxsize=1)
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs no network."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _clean(value: Any) -> Any:
    """The same without signs that no XML may hold, at which ``vl-convert`` would abort."""
    if isinstance(value, Mapping):
        return {name: _clean(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    return _NO_XML.sub("\ufffd", plain(value)) if isinstance(value, str) else value
