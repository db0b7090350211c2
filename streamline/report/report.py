"""A report: ``report.html``, ``report.md``, ``tables/`` and ``figures/`` from runs' folders.

Made from folders alone, never from a model: the records, and where they are there the samples
(paired statistics), losses and calibrations (figures) and the runs' settings. The same folders
give the same bytes. ``run.reporting`` adds what the runs' suite knows. A list of what was written,
with hashes, lies beside it: what a later report does not have is removed, and nothing else is.

Example::

    write_report(Path("out"), [RunFolder(path=Path("out"), records=load("out"))])
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from streamline.errors import ConfigError
from streamline.files import write_bytes_atomic, write_json_atomic
from streamline.reading import read_json
from streamline.report.cost_tables import efficiency_frame
from streamline.report.figures.figure import drawn
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

__all__ = ["remove_report", "write_report"]

_LIST = ".report.json"  # beside a report: its files and their hashes
_PAGES, _FOLDERS = ("report.html", "report.md"), ("tables", "figures")

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
    files: dict[str, str | bytes] = _tables(records, sections)
    results = [results_table(gathered.of(model)) for model in gathered.models]
    for table in distinct(results, lambda one: [one.name, *map(one.name.__add__, _FORMS)]):
        for ending, form in _FORMS.items():
            files[f"tables/{table.name}{ending}.tex"] = latex(table, form)
    for one in drawings:
        files |= {f"figures/{one.file}.svg": one.svg, f"figures/{one.file}.pdf": one.pdf}
    files |= {"report.md": markdown_page(page), "report.html": html(page, drawings)}
    _put(out, files)
    return out / "report.html"


def remove_report(out: Path) -> None:
    """Remove a report: each file that was written for it, as far as it is what was written."""
    _remove(out, keep=())
    (out / _LIST).unlink(missing_ok=True)
    for name in _FOLDERS:
        with suppress(OSError):  # it is not there, or holds what others put there
            (out / name).rmdir()


def _put(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a report's files, and remove those of the one before it that are not among them."""
    data = {name: one.encode() if isinstance(one, str) else one for name, one in files.items()}
    _remove(out, keep=data)
    write_json_atomic(out / _LIST, {name: _sha256(one) for name, one in data.items()})
    for name, one in data.items():
        write_bytes_atomic(out / name, one)


def _remove(out: Path, keep: Collection[str]) -> None:
    """Remove what an earlier report wrote, but for some names and what was changed since."""
    try:
        found = read_json(out / _LIST)
    except ConfigError:  # none is there, or a damaged one: then nothing is known to be ours
        found = None
    known = found if isinstance(found, dict) else {}
    for name in sorted(set(known) - set(keep)):
        folder, file = PurePosixPath(name).parent, out / name
        ours = name in _PAGES or str(folder) in _FOLDERS  # a list may come from anywhere
        if ours and file.is_file() and _sha256(file.read_bytes()) == known[name]:
            file.unlink()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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


def _tables(records: Sequence[Record], sections: Sequence[Section]) -> dict[str, str | bytes]:
    """Plain numbers as CSV and Parquet, and the tables of sections as LaTeX."""
    cells = results_frame(records)
    files: dict[str, str | bytes] = {
        "tables/results.csv": csv_text(cells),
        "tables/results.parquet": parquet_bytes(cells),
    }
    for name, frame in (
        ("efficiency", efficiency_frame(records)),
        ("seeds", seeds_frame(records)),
    ):
        if not frame.empty:
            files[f"tables/{name}.csv"] = csv_text(frame)
    tables = [table for section in sections for table in section.tables]
    return files | {f"tables/{table.name}.tex": latex(table) for table in tables}
