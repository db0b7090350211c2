"""The body of a report: sections with their tables and figures, from a run's folder.

Example::

    for section in run_sections(Path("out"), load("out")):
        section.title, [table.title for table in section.tables]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.report.artifacts import calibrations, loss_curves
from streamline.report.comparison_tables import comparison_tables
from streamline.report.figures import (
    cosine_heatmap,
    layer_cosine_figure,
    loss_figure,
    size_figure,
    sparsity_figure,
)
from streamline.report.table import Table, slug
from streamline.report.tables import run_tables
from streamline.results.compare import compare
from streamline.results.predictions import cell_predictions, comparable
from streamline.results.record import Record, label, method_label
from streamline.results.samples import samples_path

__all__ = ["Figure", "Section", "chance_tables", "run_sections"]

_SPANS = (1, 2, 4, 8)
# What ends the name of a second training's curve: its loss is another than the first's.
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
        return slug(self.title)


def run_sections(root: Path, records: Sequence[Record]) -> list[Section]:
    """Each model's tables and figures, then what belongs to no model.

    Args:
        root: The run's folder.
        records: Of the run.

    Returns:
        The sections, in the order of the models' first appearance.

        Losses, calibrations and samples that cannot be read are left out, with a note.
    """
    sections = []
    left_out: list[str] = []
    curves = loss_curves(root, records, left_out)
    for model in dict.fromkeys(record.model for record in records):
        mine = [record for record in records if record.model == model]
        figures = _measures(mine)
        for (name, sparsity), lines in curves.items():
            if name == model:
                later = {label: rows for label, rows in lines.items() if _POST.search(label)}
                first = {label: rows for label, rows in lines.items() if label not in later}
                cell, what = f"{model}-{sparsity:g}", f"{model}, target {sparsity:g}"
                figures += _losses(first, cell, what)
                figures += _losses(later, f"{cell}-post", f"{what}: post-training, next token")
        sections.append(Section(title=model, tables=run_tables(mine), figures=figures))
        tables, notes = chance_tables(root, mine)
        if tables or notes:
            sections.append(Section(title=f"{model}: significance", tables=tables, notes=notes))
    loose = _losses(curves.get(("", None), {}), "other", "replacements of no recorded cell")
    for name, cosine in calibrations(root, left_out).items():
        loose.append(
            Figure(
                name=f"cosine-{slug(name)}",
                caption=f"Mean token cosine between every two depths, calibration {name}",
                svg=cosine_heatmap(cosine, name),
            )
        )
        loose.append(
            Figure(
                name=f"spans-{slug(name)}",
                caption=f"Cosine across every span of {', '.join(map(str, _SPANS))} layers, "
                f"calibration {name}; a dot marks the span that would be chosen",
                svg=layer_cosine_figure(cosine, _SPANS, name),
            )
        )
    if loose or left_out:
        sections.append(Section(title="Calibration and training", figures=loose, notes=left_out))
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
        Figure(name=f"{name}-{slug(model)}", caption=caption, svg=svg)
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
    return [Figure(name=f"loss-{slug(name)}", caption=caption, svg=svg)]


def chance_tables(root: Path, records: Sequence[Record]) -> tuple[list[Table], list[str]]:
    """Paired statistics at each sparsity, over all questions, for each cell's first seed.

    Args:
        root: The run's folder, with the samples.
        records: Of one model.

    Returns:
        The tables, and notes on cells that could not be compared.
    """
    done = [record for record in records if record.status == "ok" and record.tasks]
    notes: list[str] = []
    first: dict[tuple[str, float, str], Record] = {}
    for record in sorted(done, key=lambda item: item.seed):
        if samples_path(root, record).is_file():
            first.setdefault((record.method, record.sparsity, record.recovery), record)
        else:
            notes.append(f"{label(record)}: no samples beside the record, left out")
    given = {label(one): cell_predictions(str(root), root, one) for one in first.values()}
    read, left_out = comparable(given)
    notes += [f"{name}: left out. {why}" for name, why in left_out.items()]
    cells = [(one, read[label(one)].tasks) for one in first.values() if label(one) in read]
    dense = next((tasks for record, tasks in cells if record.method == "dense"), None)
    if dense is None:
        return [], notes
    tables: list[Table] = []
    others = [(record, tasks) for record, tasks in cells if record.method != "dense"]
    for sparsity in sorted({record.sparsity for record, _ in others}):
        models = {"dense": dense} | {
            method_label(record.method, record.recovery): tasks
            for record, tasks in others
            if record.sparsity == sparsity
        }
        try:
            result = compare(models, "dense", pooled_only=True)
        except ConfigError as error:
            notes.append(f"Target {sparsity:g}: not compared. {error}")
            continue
        tables += [
            replace(
                table,
                name=f"{table.name}-{slug(records[0].model)}-{sparsity:g}",
                title=f"Target {sparsity:g}: {table.title}",
            )
            for table in comparison_tables(result)
        ]
    return tables, notes
