"""A report: ``report.html``, ``report.md``, ``tables/`` and ``figures/`` from runs' folders.

Made from folders alone, never from a model: the records, and where they are there the samples
(paired statistics), losses and calibrations (figures) and the runs' settings. The same folders
give the same bytes. ``run.reporting`` adds what the runs' suite knows.

Example::

    write_report(Path("out"), [RunFolder(path=Path("out"), records=load("out"))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.files import write_bytes_atomic, write_text_atomic
from streamline.report.cost_tables import efficiency_frame
from streamline.report.figures.figure import Drawn, drawn
from streamline.report.frames import results_frame, seeds_frame
from streamline.report.latex import latex
from streamline.report.layouts import layout_table
from streamline.report.pages import Page, html, markdown_page
from streamline.report.provenance import provenance
from streamline.report.render import csv_text, parquet_bytes
from streamline.report.runs import RunFolder, side_by_side
from streamline.report.sections import Section, first_screen, gather, run_sections
from streamline.report.table import slug
from streamline.report.tables import results_table
from streamline.results.record import Record

__all__ = ["write_report"]


def write_report(
    out: Path,
    runs: Sequence[RunFolder],
    *,
    layout: Mapping[str, Any] | None = None,
    layout_note: str | None = None,
    command: str = "streamline-bench report DIR",
) -> Path:
    """Write the report of one run or of several side by side.

    Args:
        out: The folder to write into.
        runs: What is reported.
        layout: Which published table is set beside the records, as ``report.layouts`` describes
            it; None for none.
        layout_note: A sentence that replaces it, such as why there is none.
        command: The command line that makes the report again.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there are no records, runs cannot be compared, or the layout or what lies
            beside the records is malformed.
        UnknownNameError: If the layout names no published table.
    """
    given, notes = side_by_side(runs)
    records = [record for run in given for record in run.records]
    if not records:
        raise ConfigError(f"{out} holds no record yet; let the run finish a cell first.")
    gathered = gather(given)
    first, sections = first_screen(gathered), run_sections(gathered)
    if layout is not None or layout_note:
        tables = [] if layout is None else [layout_table(records, layout)]
        said = [layout_note] if layout_note else []
        section = Section(title="Published and measured", tables=tables, notes=said, open=True)
        sections = [section, *sections]
    page = Page(
        gathered=gathered,
        first=first,
        sections=sections,
        facts=provenance(given),
        notes=notes,
        command=command,
    )
    every = [first, *sections]
    drawings = [one for section in every for figure in section.figures for one in drawn(figure)]
    _write_tables(out / "tables", records, every)
    for model in gathered.models:
        table = results_table(gathered.of(model))
        for form in ("compact", "full"):
            file = out / "tables" / f"{slug(table.name)}-{form}.tex"
            write_text_atomic(file, latex(table, "compact" if form == "compact" else "full"))
    _write_figures(out / "figures", drawings)
    write_text_atomic(out / "report.md", markdown_page(page))
    write_text_atomic(out / "report.html", html(page, drawings))
    return out / "report.html"


def _write_tables(folder: Path, records: Sequence[Record], sections: Sequence[Section]) -> None:
    """Plain numbers as CSV and Parquet, and every other table of the report as LaTeX."""
    cells = results_frame(records)
    write_text_atomic(folder / "results.csv", csv_text(cells))
    write_bytes_atomic(folder / "results.parquet", parquet_bytes(cells))
    for name, frame in (
        ("efficiency", efficiency_frame(records)),
        ("seeds", seeds_frame(records)),
    ):
        if not frame.empty:
            write_text_atomic(folder / f"{name}.csv", csv_text(frame))
    for section in sections[1:]:
        for table in section.tables:
            write_text_atomic(folder / f"{slug(table.name)}.tex", latex(table))


def _write_figures(folder: Path, drawings: Sequence[Drawn]) -> None:
    for one in drawings:
        write_text_atomic(folder / f"{one.file}.svg", one.svg)
        write_bytes_atomic(folder / f"{one.file}.pdf", one.pdf)
