"""The body of a report: sections with their tables and figures, from runs' folders.

Example::

    for section in run_sections(gathered):
        section.title, [table.title for table in section.tables]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from streamline.report.artifacts import calibrations, loss_curves
from streamline.report.cost_tables import (
    cost_table,
    efficiency_table,
    seeds_table,
    serving_table,
)
from streamline.report.figures.answers import answers_figure
from streamline.report.figures.cosine import chosen_spans, cosine_figure
from streamline.report.figures.figure import Figure
from streamline.report.figures.layers import layers_figure
from streamline.report.figures.losses import Curves, loss_figure
from streamline.report.figures.measures import measure_figure, sparsity_text
from streamline.report.figures.pareto import pareto_figure
from streamline.report.figures.sizes import sizes_figure
from streamline.report.figures.style import Style
from streamline.report.findings.chance import Comparisons, chance_tables, paired
from streamline.report.findings.domains import domains_table
from streamline.report.findings.rows import Row, rows
from streamline.report.names import slug
from streamline.report.runs import RunFolder
from streamline.report.table import Table
from streamline.report.tables import failures_table, flips_table, results_table, stability_table
from streamline.results.answers import Floats
from streamline.results.record import Record

__all__ = ["Gathered", "Section", "first_screen", "gather", "run_sections"]

Item = TypeVar("Item")

_OF_CELLS = (efficiency_table, serving_table, cost_table, seeds_table)

# What ends the name of a second training's curve: its loss is another than the first's.
_POST = re.compile(r"-post(, seed \d+)?$")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its figures and tables; in a page the tables open when asked to.

    Its ``name`` is that in links: of its title, if none is given.
    """

    title: str
    name: str = ""
    figures: Sequence[Figure] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)
    open: bool = False
    given: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make a name for links."""
        object.__setattr__(self, "given", self.title)
        object.__setattr__(self, "name", self.name or slug(self.title))


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Everything that a report shows, read once.

    Attributes:
        runs: The folders.
        rows: The main table's rows.
        comparisons: Which of them cannot be told apart.
        notes: By model, why cells could not be compared.
        style: The methods' colours.
    """

    runs: Sequence[RunFolder]
    rows: Sequence[Row]
    comparisons: Comparisons
    notes: Mapping[str, Sequence[str]]
    style: Style

    @property
    def records(self) -> list[Record]:
        """The cells of all folders."""
        return [record for run in self.runs for record in run.records]

    @property
    def models(self) -> list[str]:
        """In the order of their first appearance."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def of(self, model: str) -> list[Row]:
        """The rows of one model."""
        return [row for row in self.rows if row.model == model]


def gather(runs: Sequence[RunFolder]) -> Gathered:
    """Read and compare what some folders hold.

    Args:
        runs: The folders, each cell in one of them.
    """
    comparisons, notes = paired(runs)
    found = rows([record for run in runs for record in run.records], comparisons)
    style = Style([row.method for row in found])
    return Gathered(runs=runs, rows=found, comparisons=comparisons, notes=notes, style=style)


def first_screen(gathered: Gathered) -> Section:
    """What accuracy costs, and the one table."""
    figures = [pareto_figure(gathered.of(model), gathered.style) for model in gathered.models]
    return Section(
        title="Results",
        figures=[figure for figure in figures if figure is not None],
        tables=[results_table(gathered.rows)],
        open=True,
    )


def run_sections(gathered: Gathered) -> list[Section]:
    """What stands below the first screen, model by model, and what is left out and why."""
    left_out: list[str] = []
    curves: dict[tuple[str, float | None], dict[str, Any]] = {}
    cosines: dict[str, Floats] = {}
    for run in gathered.runs:
        for key, found in loss_curves(run.path, run.records, left_out).items():
            curves.setdefault(key, {}).update(found)
        cosines |= calibrations(run.path, left_out)
    sections: list[Section] = []
    for model in gathered.models:
        alone = len(gathered.models) == 1
        own = {name: cosines.pop(name) for name in list(cosines) if alone or name == model}
        losses = {target: found for (name, target), found in curves.items() if name == model}
        before = "" if alone else f"{model}: "
        sections += [
            replace(section, title=before + section.title, name="")
            for section in _of_model(gathered, model, own, losses)
            if section.figures or section.tables or section.notes
        ]
    sizes = _some(sizes_figure(gathered.rows, gathered.style))
    sections.insert(0, Section(title="Models by size", figures=sizes))
    loose = [cosine_figure(value, name, {}) for name, value in cosines.items()]
    loose += _some(loss_figure({"": curves.get(("", None), {})}, "other", gathered.style))
    sections.append(Section(title="Of no recorded cell", figures=loose, notes=left_out))
    lost = _some(failures_table(gathered.records))
    sections.append(Section(title="Failed and skipped", tables=lost, open=True))
    return [one for one in sections if one.figures or one.tables or one.notes]


def _of_model(
    gathered: Gathered, model: str, cosines: Mapping[str, Floats], losses: Mapping[Any, Curves]
) -> list[Section]:
    """The sections of one model, those without anything in them too."""
    mine, style = gathered.of(model), gathered.style
    records = [record for record in gathered.records if record.model == model]
    measures = [measure_figure(mine, measure, style) for measure in ("accuracy", "stability")]
    spans = chosen_spans(mine)
    alike = [cosine_figure(value, name, spans) for name, value in cosines.items()]
    tables = [of(records) for of in _OF_CELLS]
    return [
        Section(
            title="Accuracy and stability",
            figures=[figure for figure in measures if figure is not None],
        ),
        Section(title="Layers", figures=[*_some(layers_figure(mine, style)), *alike]),
        Section(
            title="Answers by task",
            figures=_some(answers_figure(mine)),
            tables=[*_some(stability_table(mine)), *_some(flips_table(mine))],
        ),
        Section(
            title="Speed, size and cost",
            figures=_some(loss_figure(_by_target(losses), model, style)),
            tables=[table for table in tables if table.rows],
        ),
        Section(title="Texts", tables=_some(domains_table(records))),
        Section(
            title="Differences",
            tables=chance_tables(gathered.comparisons, model),
            notes=gathered.notes.get(model, ()),
        ),
    ]


def _by_target(losses: Mapping[float | None, Curves]) -> dict[str, Curves]:
    """Curves by target in words, those of a second training, on another loss, by themselves."""
    found: dict[str, Curves] = {}
    for target, curves in sorted(losses.items(), key=lambda item: item[0] or 0.0):
        later = {name: rows for name, rows in curves.items() if _POST.search(name)}
        words = sparsity_text(target or 0.0)
        found[words] = {name: rows for name, rows in curves.items() if name not in later}
        if later:
            found[f"{words}, post-training"] = later
    return found


def _some(item: Item | None) -> list[Item]:
    return [] if item is None else [item]
