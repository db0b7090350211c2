"""The report of a run: ``report.md``, ``report.html``, ``tables/`` and ``figures/``.

Made from the folder alone, never from a model: the records, and where they are there the samples
(paired statistics), losses and calibrations (figures) and the run's settings. The same folder
gives the same bytes.

Example::

    write_report("out")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError, UnknownNameError
from streamline.files import write_text_atomic
from streamline.report.artifacts import calibrations, loss_curves, run_settings
from streamline.report.comparison_tables import comparison_tables
from streamline.report.figures import (
    INK,
    cosine_heatmap,
    layer_cosine_figure,
    loss_figure,
    size_figure,
    sparsity_figure,
)
from streamline.report.frames import cost_frame, results_frame, seeds_frame, stability_frame
from streamline.report.layouts import layout_table
from streamline.report.provenance import Provenance, provenance
from streamline.report.render import latex, markdown
from streamline.report.tables import Table, run_tables
from streamline.results.compare import compare
from streamline.results.record import Record, load

__all__ = ["Figure", "Section", "write_report"]

_SPANS = (1, 2, 4, 8)
#: What ends the name of a second training's curve: its loss is another than the first's.
_POST = re.compile(r"-post(, seed \d+)?$")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the report: its file's name, its caption and its SVG text."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its tables and figures."""

    title: str
    tables: Sequence[Table] = field(default_factory=tuple)
    figures: Sequence[Figure] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """The heading's name in links."""
        return _slug(self.title)


def write_report(directory: str | Path, suite: str | None = None) -> Path:
    """Write a run's report into its folder.

    Args:
        directory: The folder with ``results.json``.
        suite: Name or file of the suite whose layout is followed; by default the one that the run
            came from, if any.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there are no records, or what lies beside them is malformed.
        UnknownNameError: If the suite does not exist.
    """
    root = Path(directory)
    records = load(root)
    if not records:
        raise ConfigError(f"{root} holds no record yet; let the run finish a cell first.")
    settings = run_settings(root)
    sections = _sections(root, records, _layout(suite, settings.get("suite")))
    facts = provenance(records, settings)
    _write_tables(root / "tables", records, sections)
    for section in sections:
        for item in section.figures:
            white = item.svg.replace("<svg ", '<svg style="background: #fff" ', 1)
            write_text_atomic(root / "figures" / f"{item.name}.svg", white)
    write_text_atomic(root / "report.md", _render("report.md.jinja", sections, facts))
    page = root / "report.html"
    write_text_atomic(page, _render("report.html.jinja", sections, facts))
    return page


def _sections(
    root: Path, records: Sequence[Record], layout: Mapping[str, Any] | str | None
) -> list[Section]:
    """The report's body: the paper's table, then each model, then what belongs to no model."""
    sections = []
    if isinstance(layout, str):
        sections.append(Section(title="Published and measured", notes=[layout]))
    elif layout is not None:
        sections.append(
            Section(title="Published and measured", tables=[layout_table(records, layout)])
        )
    curves = loss_curves(root, records)
    for model in dict.fromkeys(record.model for record in records):
        mine = [record for record in records if record.model == model]
        figures = _measures(mine)
        for (name, sparsity), lines in curves.items():
            if name == model:
                later = {label: rows for label, rows in lines.items() if _POST.search(label)}
                first = {label: rows for label, rows in lines.items() if label not in later}
                place, what = f"{model}-{sparsity:g}", f"{model}, asked {sparsity:g}"
                figures += _losses(first, place, what)
                figures += _losses(later, f"{place}-post", f"{what}: post-training, next token")
        sections.append(Section(title=model, tables=run_tables(mine), figures=figures))
        tables, notes = _statistics(root, mine)
        if tables or notes:
            sections.append(
                Section(title=f"{model}: what is more than chance", tables=tables, notes=notes)
            )
    loose = _losses(curves.get(("", None), {}), "other", "replacements of no recorded cell")
    for name, cosine in calibrations(root).items():
        loose.append(
            Figure(
                name=f"cosine-{_slug(name)}",
                caption=f"Mean token cosine between every two depths, calibration {name}",
                svg=cosine_heatmap(cosine, name),
            )
        )
        loose.append(
            Figure(
                name=f"spans-{_slug(name)}",
                caption=f"Cosine across every span of {', '.join(map(str, _SPANS))} layers, "
                f"calibration {name}; a dot marks the span that would be chosen",
                svg=layer_cosine_figure(cosine, _SPANS, name),
            )
        )
    if loose:
        sections.append(Section(title="Calibration and training", figures=loose))
    return sections


def _measures(records: Sequence[Record]) -> list[Figure]:
    """Accuracy and stability by sparsity, and accuracy by what was really removed."""
    model = records[0].model
    found = (
        ("accuracy", f"{model}: average accuracy by sparsity", sparsity_figure(records)),
        (
            "stability",
            f"{model}: stability by sparsity",
            sparsity_figure(records, "stability"),
        ),
        ("size", f"{model}: average accuracy by parameters removed", size_figure(records)),
    )
    return [
        Figure(name=f"{name}-{_slug(model)}", caption=caption, svg=svg)
        for name, caption, svg in found
        if svg is not None
    ]


def _losses(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], name: str, what: str
) -> list[Figure]:
    svg = loss_figure(curves)
    if svg is None:
        return []
    caption = f"Validation loss in training, {what}"
    return [Figure(name=f"loss-{_slug(name)}", caption=caption, svg=svg)]


def _statistics(root: Path, records: Sequence[Record]) -> tuple[list[Table], list[str]]:
    """Paired statistics at each sparsity, over all questions, for each cell's first seed."""
    from streamline.results.predictions import from_samples
    from streamline.results.samples import read_samples, samples_path

    done = [record for record in records if record.status == "ok" and record.tasks]
    notes = [
        f"{record.method} at {record.sparsity:g}: no samples beside the record, left out"
        for record in done
        if not samples_path(root, record).is_file()
    ]
    first: dict[tuple[str, float, str], Record] = {}
    for record in sorted(done, key=lambda item: item.seed):
        if samples_path(root, record).is_file():
            first.setdefault((record.method, record.sparsity, record.recovery), record)
    dense = next((record for record in first.values() if record.method == "dense"), None)
    if dense is None:
        return [], notes
    tables: list[Table] = []
    answers = from_samples(read_samples(samples_path(root, dense)))
    for sparsity in sorted({record.sparsity for record in first.values() if record is not dense}):
        models = {"dense": answers} | {
            record.method + ("" if record.recovery == "none" else f" +{record.recovery}"): (
                from_samples(read_samples(samples_path(root, record)))
            )
            for record in first.values()
            if record.sparsity == sparsity and record is not dense
        }
        try:
            result = compare(models, "dense", pooled_only=True)
        except ConfigError as error:
            notes.append(f"Asked {sparsity:g}: not compared. {error}")
            continue
        tables += [
            replace(
                table,
                name=f"{table.name}-{_slug(records[0].model)}-{sparsity:g}",
                title=f"Asked {sparsity:g}: {table.title}",
            )
            for table in comparison_tables(result)
        ]
    return tables, notes


def _layout(asked: str | None, recorded: Any) -> Mapping[str, Any] | str | None:
    """The layout that a suite asks for; a note if the suite of the run is not at hand."""
    from streamline.run.suites import load_suite

    if asked is None and recorded is None:
        return None
    try:
        layout = load_suite(str(asked or recorded)).report.get("layout")
    except UnknownNameError as error:
        if asked is not None:
            raise
        return f"{error} For its table in the paper's layout, give --suite FILE."
    if layout is not None and not isinstance(layout, Mapping):
        raise ConfigError(
            f"Suite {asked or recorded}: report.layout is no mapping; its form is described in "
            "streamline/report/layouts.py."
        )
    return layout


def _write_tables(folder: Path, records: Sequence[Record], sections: Sequence[Section]) -> None:
    """Plain numbers as CSV, and every table of the report as LaTeX."""
    frames = {
        "results": results_frame(records),
        "stability": stability_frame(records),
        "cost": cost_frame(records),
        "seeds": seeds_frame(records),
    }
    for name, frame in frames.items():
        if not frame.empty:
            write_text_atomic(
                folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n")
            )
    for section in sections:
        for table in section.tables:
            write_text_atomic(folder / f"{_slug(table.name)}.tex", latex(table))


def _render(name: str, sections: Sequence[Section], facts: Provenance) -> str:
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
    environment.filters["markdown_table"] = markdown
    environment.filters["inline_svg"] = _inline
    text = (resources.files("streamline.report") / "templates" / name).read_text("utf-8")
    return environment.from_string(text).render(sections=sections, facts=facts)


def _inline(item: Figure) -> Any:
    """SVG to stand inside a page: no prolog, ids of its own, the page's text colour as ink."""
    from markupsafe import Markup

    svg = item.svg[item.svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{item.name}.\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{item.name}.\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{item.name}.\1)", svg)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace(INK, "currentColor"))


def _slug(text: str) -> str:
    """A name for files and links."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
