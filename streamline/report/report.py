"""The report of a run: ``report.md``, ``report.html``, ``tables/`` and ``figures/``.

Made from the folder alone, never from a model: the records, and where they are there the samples
(paired statistics), losses and calibrations (figures) and the run's settings. The same folder
gives the same bytes. ``run.reporting`` adds what the run's suite knows.

Example::

    write_report("out", load("out"))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.files import write_text_atomic
from streamline.report.artifacts import run_settings
from streamline.report.cost_tables import efficiency_frame
from streamline.report.drawing import INK
from streamline.report.frames import cost_frame, results_frame, seeds_frame, stability_frame
from streamline.report.layouts import layout_table
from streamline.report.provenance import provenance
from streamline.report.render import code, csv_text, inert, latex, markdown
from streamline.report.sections import Figure, Section, run_sections
from streamline.report.table import plain, slug
from streamline.results.record import Record

__all__ = ["write_report"]


def write_report(
    directory: str | Path,
    records: Sequence[Record],
    *,
    layout: Mapping[str, Any] | None = None,
    layout_note: str | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Write a run's report into its folder.

    Args:
        directory: The run's folder.
        records: Of the run.
        layout: Which published table is set beside the records, as ``report.layouts`` describes
            it; None for none.
        layout_note: A sentence that replaces it, such as why there is none.
        commands: The command lines that repeat the run, if known.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there are no records, or the layout or what lies beside the records is
            malformed.
        UnknownNameError: If the layout names no published table.
    """
    root = Path(directory)
    if not records:
        raise ConfigError(f"{root} holds no record yet; let the run finish a cell first.")
    sections = run_sections(root, records)
    if layout is not None or layout_note:
        tables = [] if layout is None else [layout_table(records, layout)]
        notes = [layout_note] if layout_note else []
        sections = [Section(title="Published and measured", tables=tables, notes=notes), *sections]
    _write_tables(root / "tables", records, sections)
    for section in sections:
        for item in section.figures:
            white = item.svg.replace("<svg ", '<svg style="background: #fff" ', 1)
            write_text_atomic(root / "figures" / f"{item.name}.svg", white)
    settings = {name: value for name, value in run_settings(root).items() if name != "sources"}
    facts = provenance(records, settings)
    page = root / "report.html"
    for path in (root / "report.md", page):
        text = _render(f"{path.name}.jinja", sections=sections, facts=facts, commands=commands)
        write_text_atomic(path, text)
    return page


def _write_tables(folder: Path, records: Sequence[Record], sections: Sequence[Section]) -> None:
    """Plain numbers as CSV, and every table of the report as LaTeX."""
    frames = {
        "results": results_frame(records),
        "stability": stability_frame(records),
        "cost": cost_frame(records),
        "efficiency": efficiency_frame(records),
        "seeds": seeds_frame(records),
    }
    for name, frame in frames.items():
        if not frame.empty:
            write_text_atomic(folder / f"{name}.csv", csv_text(frame))
    for section in sections:
        for table in section.tables:
            write_text_atomic(folder / f"{slug(table.name)}.tex", latex(table))


def _render(name: str, **values: Any) -> str:
    """Fill one of the two templates."""
    from jinja2 import Environment, StrictUndefined

    html = name.endswith(".html.jinja")
    environment = Environment(
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown_table": markdown, "inert": inert, "code": code}
    environment.filters["plain"] = plain
    environment.filters["inline_svg"] = _inline
    text = (resources.files("streamline.report") / "templates" / name).read_text("utf-8")
    return environment.from_string(text).render(values)


def _inline(item: Figure) -> Any:
    """SVG inside a page: no prolog, ids of its own, no wider than it was drawn, the page's ink."""
    from markupsafe import Markup

    svg = item.svg[item.svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{item.name}.\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{item.name}.\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{item.name}.\1)", svg)
    size = r'(<svg [^>]*?) width="([^"]*)" height="[^"]*"'
    svg = re.sub(size, r'\1 style="max-width: \2"', svg, count=1)
    return Markup(svg.replace(INK, "currentColor"))
