"""A report: ``report.html``, ``report.md``, ``tables/`` and ``figures/`` from runs' folders.

Made from folders alone, never from a model: the records, and where they are there the samples
(paired statistics), losses and calibrations (figures) and the runs' settings. The same folders
give the same bytes. ``run.reporting`` adds what the runs' suite knows.

Example::

    write_report(Path("out"), [RunFolder(path=Path("out"), records=load("out"))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from streamline.errors import ConfigError
from streamline.files import write_bytes_atomic, write_text_atomic
from streamline.report.cost_tables import efficiency_frame
from streamline.report.figures.figure import Drawn, drawn
from streamline.report.figures.headline import headline_figure
from streamline.report.frames import results_frame, seeds_frame
from streamline.report.latex import latex
from streamline.report.layouts import layout_table
from streamline.report.names import distinct
from streamline.report.pages import Page, html, markdown_page
from streamline.report.provenance import provenance
from streamline.report.render import csv_text, parquet_bytes
from streamline.report.runs import RunFolder, side_by_side
from streamline.report.sections import Section, first_screen, gather, run_sections
from streamline.report.tables import results_table
from streamline.results.record import Record

__all__ = ["write_report"]

_FORMS: dict[str, Literal["compact", "full"]] = {"-compact": "compact", "-full": "full"}


def write_report(
    out: Path,
    runs: Sequence[RunFolder],
    *,
    layout: Mapping[str, Any] | None = None,
    layout_note: str | None = None,
    headline: Mapping[str, Any] | None = None,
    command: str = "streamline-bench report DIR",
) -> Path:
    """Write the report of one run or of several side by side.

    Args:
        out: The folder to write into.
        runs: What is reported.
        layout: Which published table is set beside the records, as ``report.layouts`` describes
            it; None for none.
        layout_note: A sentence that replaces it, such as why there is none.
        headline: What the paper opens with, as ``report.figures.headline`` describes it, or None.
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
    if layout is not None or layout_note or headline:
        opens = [
            headline_figure(gathered.of(model), headline, gathered.style)
            for model in gathered.models
            if headline
        ]
        section = Section(
            title="Published and measured",
            figures=[figure for figure in opens if figure is not None],
            tables=[] if layout is None else [layout_table(records, layout)],
            notes=[layout_note] if layout_note else [],
            open=True,
        )
        sections = [section, *sections]
    first, *sections = every = _told_apart([first, *sections])
    page = Page(
        gathered=gathered,
        first=first,
        sections=sections,
        facts=provenance(given),
        notes=notes,
        command=command,
    )
    drawings = [one for section in every for figure in section.figures for one in drawn(figure)]
    _write_tables(out / "tables", records, sections)
    results = [results_table(gathered.of(model)) for model in gathered.models]
    for table in distinct(results, lambda one: [one.name, *map(one.name.__add__, _FORMS)]):
        for ending, form in _FORMS.items():
            write_text_atomic(out / "tables" / f"{table.name}{ending}.tex", latex(table, form))
    _write_figures(out / "figures", drawings)
    write_text_atomic(out / "report.md", markdown_page(page))
    write_text_atomic(out / "report.html", html(page, drawings))
    return out / "report.html"


def _told_apart(sections: Sequence[Section]) -> list[Section]:
    """The sections with no link, and no file of a figure or table, that two of them have."""
    pictures = [figure for one in sections for figure in one.figures]
    listed = [table for one in sections for table in one.tables]
    figures = iter(distinct(pictures, lambda one: {one.name, *map(one.file_of, one.views)}))
    tables = iter(distinct(listed, lambda one: [one.name]))
    return [
        replace(
            one,
            figures=[next(figures) for _ in one.figures],
            tables=[next(tables) for _ in one.tables],
        )
        for one in distinct(sections, lambda one: [one.name])
    ]


def _write_tables(folder: Path, records: Sequence[Record], sections: Sequence[Section]) -> None:
    """Plain numbers as CSV and Parquet, and the tables of sections as LaTeX."""
    cells = results_frame(records)
    write_text_atomic(folder / "results.csv", csv_text(cells))
    write_bytes_atomic(folder / "results.parquet", parquet_bytes(cells))
    for name, frame in (
        ("efficiency", efficiency_frame(records)),
        ("seeds", seeds_frame(records)),
    ):
        if not frame.empty:
            write_text_atomic(folder / f"{name}.csv", csv_text(frame))
    (folder / "failures.tex").unlink(missing_ok=True)  # what failed before may be done by now
    for section in sections:
        for table in section.tables:
            write_text_atomic(folder / f"{table.name}.tex", latex(table))


def _write_figures(folder: Path, drawings: Sequence[Drawn]) -> None:
    for one in drawings:
        write_text_atomic(folder / f"{one.file}.svg", one.svg)
        write_bytes_atomic(folder / f"{one.file}.pdf", one.pdf)
