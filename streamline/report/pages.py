"""The pages of a report: one HTML file that needs no network, and Markdown.

Names and reasons come from anywhere and stay inert: HTML and Markdown escape them, figures hold
them as data, and the data in the page are escaped for a script.

Example::

    write_text_atomic("report.html", html(page, drawings))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from streamline.report.figures.figure import Drawn, in_page, page_json, script
from streamline.report.findings.answer import answer, budget, question
from streamline.report.provenance import Provenance
from streamline.report.render import code, inert, markdown
from streamline.report.sections import Gathered, Section
from streamline.report.table import plain

__all__ = ["Page", "html", "markdown_page"]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the pages show.

    Attributes:
        gathered: Runs, rows and colours.
        first: The first screen's figures and table.
        sections: What stands below it.
        facts: Where the numbers come from.
        notes: On cells of several runs.
        command: Makes the report again.
    """

    gathered: Gathered
    first: Section
    sections: Sequence[Section]
    facts: Provenance
    notes: Sequence[str] = field(default_factory=tuple)
    command: str

    def values(self) -> dict[str, Any]:
        """What both templates fill in."""
        settings = [run.settings for run in self.gathered.runs]
        rows = self.gathered.rows
        commands = [command for run in self.gathered.runs for command in run.commands]
        return {
            "question": plain(question(rows)),
            "answer": plain(answer(rows)),
            "budget": plain(budget(self.gathered.records, settings)),
            "first": self.first,
            "sections": list(self.sections),
            "facts": self.facts,
            "notes": [plain(note) for note in self.notes],
            "commands": list(dict.fromkeys(map(plain, commands))),
            "command": plain(self.command),
        }


def html(page: Page, drawings: Sequence[Drawn]) -> str:
    """The page: each figure as a drawing that stands without a script, and its data for one."""
    from markupsafe import Markup

    shown = {(one.figure.name, one.view.name): one for one in drawings}
    figures = [figure for part in (page.first, *page.sections) for figure in part.figures]

    def drawing(figure: Any) -> Markup:
        return Markup(_inline(shown[figure.name, figure.views[0].name]))

    data = page_json(figures)
    for sign, code_point in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(sign, code_point)
    return _fill(
        "report.html.jinja",
        **page.values(),
        drawing=drawing,
        colours={name: page.gathered.style.colour_of(name) for name in page.gathered.style.methods},
        style=Markup(_text("report.css")),
        behaviour=Markup(_text("report.js")),
        notices=Markup(_text("notices.txt")),
        vega=Markup(_in_script(script())) if figures else "",
        data=Markup(data),
    )


def markdown_page(page: Page) -> str:
    """The same in Markdown, with the figures' files."""
    return _fill("report.md.jinja", **page.values())


def _fill(name: str, **values: Any) -> str:
    """Fill one of the two templates."""
    return str(_template(name).render(values))


@lru_cache(maxsize=2)
def _template(name: str) -> Any:
    """One of the two templates, compiled once a process."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown_table": markdown, "inert": inert, "code": code}
    environment.filters |= {"plain": plain, "breakable": _breakable}
    return environment.from_string(_text(name))


def _breakable(name: str) -> Any:
    """A name that may be broken after a hyphen or before a plus."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[-_/])|(?=\+)", name))


def _text(name: str) -> str:
    return (resources.files("streamline.report") / "templates" / name).read_text("utf-8")


def _in_script(text: str) -> str:
    """JavaScript that does not end its own element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _inline(one: Drawn) -> str:
    """SVG inside a page: no prolog, no wider than it was drawn, in the page's colours."""
    svg = in_page(one.svg[one.svg.index("<svg ") :])
    return re.sub(
        r'(<svg [^>]*?) width="([^"]*)" height="[^"]*"', r'\1 style="max-width: \2px"', svg, count=1
    )
