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
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from streamline.report.figures.style import INK, LINE, PAGE, SOFT, config
from streamline.report.table import plain, slug

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "WIDE",
    "Drawn",
    "Figure",
    "View",
    "drawn",
    "in_page",
    "page_json",
    "script",
    "svg",
    "view",
]

WIDE, HALF, NARROW = 1060, 520, 340
"""Pixels that a drawing may fill, names included: a page, half of one, a phone."""

CHECKED = False

_NO_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")

_RESOURCES = re.compile(rb"<<\n((?: +/[A-Za-z]+\d+ \d+ 0 R\n)+)")

Rows = Sequence[Mapping[str, Any]]


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
        name: For files and links.
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

    def __post_init__(self) -> None:
        """Make its name one for files, and take control characters out of texts."""
        put = object.__setattr__
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


def view(
    label: str, draw: Callable[[int], alt.TopLevelMixin], name: str = "", width: int = HALF
) -> View:
    """A view from what draws it at a width in pixels.

    Altair checks what it is given against Vega-Lite's schema, which takes a third of a report's
    time: only where ``CHECKED`` is set, as in tests.
    """
    from altair.utils.schemapi import debug_mode

    with debug_mode(CHECKED):
        wide, narrow = (draw(room).to_dict(validate=CHECKED) for room in (width, NARROW))
    return View(name=name, label=plain(label), wide=_bare(wide), narrow=_bare(narrow))


def svg(figure: Figure, one: View) -> str:
    """A view as an SVG file: letters as text, the same bytes each time."""
    import vl_convert

    text = vl_convert.vegalite_to_svg({**one.wide, "datasets": figure.data, "config": config()})
    ids: dict[str, str] = {}  # the library counts on from one figure to the next
    for found in re.findall(r'(?:id="|url\(#)((?:clip|gradient_?)\d+)', text):
        ids.setdefault(found, f"{figure.file_of(one)}.{len(ids)}")
    return re.sub(r'(id="|url\(#)((?:clip|gradient_?)\d+)', lambda m: m[1] + ids[m[2]], text)


def drawn(figure: Figure) -> list[Drawn]:
    """Each view of a figure as files."""
    found = []
    for one in figure.views:
        text = svg(figure, one)
        found.append(Drawn(figure=figure, view=one, svg=text, pdf=pdf(text)))
    return found


def pdf(text: str) -> bytes:
    """An SVG file as PDF, its letters embedded, the same bytes each time."""
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


def _bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _clean(part) for name, part in spec.items() if name not in ("config", "usermeta")}


def _clean(value: Any) -> Any:
    """The same without signs that no XML may hold, at which ``vl-convert`` would abort."""
    if isinstance(value, Mapping):
        return {name: _clean(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    return _NO_XML.sub("\ufffd", plain(value)) if isinstance(value, str) else value
