"""A paper's table with the measured values below the printed ones.

A suite's ``report`` block names the published table it regenerates::

    report:
      layout:
        published: v1_table1_ppl
        methods: {Ours: llm-streamline-ffn, "ShortGPT*": shortgpt}    # printed -> method here,
                                                # "METHOD +lora" for the cell after that recovery
        columns: {CMNLI: streamline_cmnli}                            # printed -> task; optional
        models: {Llama2-7B: llama2-7b}                                # printed -> alias; optional

Each printed row is followed by what was measured for it and the difference; printed numbers
are never changed, and known slips are notes. Beside a printed ratio stands what comes out of the
model's config: by the paper's way of counting, and as the exact fraction of all parameters, which
is what measured rows have. A model that is not in the paper has rows of its own below, without a
difference.

Example::

    table = layout_table(load("out"), {"published": "v1_table3_opt", "methods": {...}})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamline.errors import ConfigError
from streamline.report.frames import sort_records
from streamline.report.published import (
    PublishedRow,
    Ratio,
    model_name,
    plain,
    published_ratios,
    published_rows,
    published_slips,
)
from streamline.report.table import MISSING, Table, fixed
from streamline.results.averages import average, collapsed_tasks
from streamline.results.record import Record, label, method_label

__all__ = ["check_headline", "layout_table"]

_KEYS = ("published", "methods", "columns", "models")
_AVERAGE, _RELATIVE = "Ave.", "Per."
_RECOMPUTED = ("recomputed\nas the paper", "recomputed\nexact")
_CLOSE = 0.04  # of sparsity: how far a cell may lie from a printed ratio to be compared
_ALIASES = {
    "coqa": "commonsenseqa",
    "hesw": "hellaswag",
    "raceh": "racehigh",
    "racem": "racemiddle",
}


def check_headline(given: Any) -> Mapping[str, Any]:
    """A suite's ``headline``, if it can be read.

    Raises:
        ConfigError: If it is no mapping of ``ours`` to a text and ``published`` to a number.
    """
    form: dict[str, type | tuple[type, ...]] = {"ours": str, "published": (int, float)}
    if (
        not isinstance(given, Mapping)
        or set(given) != set(form)
        or not all(isinstance(given[key], kind) for key, kind in form.items())
    ):
        raise ConfigError(
            "report.headline must be a mapping such as {ours: llm-streamline, published: 11.2}, "
            f"got {given!r}"
        )
    return given


def layout_table(records: Sequence[Record], layout: Mapping[str, Any]) -> Table:
    """The published table with measured rows.

    Args:
        records: Of any models.
        layout: As in the module's description.

    Returns:
        The table; fractions in percent, differences measured minus published.

    Raises:
        ConfigError: If the layout has an unknown key, or ``published`` is missing.
        UnknownNameError: If there is no such published table.
    """
    unknown = sorted(set(layout) - set(_KEYS))
    if unknown or "published" not in layout:
        raise ConfigError(
            f"A layout has the keys {', '.join(_KEYS)}, of which published is required; given are "
            f"{', '.join(layout) or 'none'}."
        )
    name = str(layout["published"])
    printed = published_rows(name)
    heads = list(dict.fromkeys(head for row in printed for head in row.values))
    tasks = _task_names(heads, records, layout.get("columns") or {})
    finished = [record for record in sort_records(records) if record.status == "ok"]
    dense = {(record.model, record.seed): record for record in finished if record.method == "dense"}
    used: set[tuple[Any, ...]] = set()
    rows: list[tuple[str, ...]] = []
    sections: set[int] = set()
    ratios = published_ratios(name)
    before: tuple[Any, ...] | None = None  # what the last group was, to divide it from the next
    for row in printed:
        record = _match(row, finished, layout)
        group = (row.block, row.llm) if record is None else (row.block, row.llm, len(rows))
        if rows and group != before:
            sections.add(len(rows))
        before = group
        ratio = Ratio() if row.ratio is None else ratios.get((row.llm, row.method, row.ratio))
        rows.append(_printed_cells(row, ratio or Ratio(), heads))
        if record is not None:
            used.add(record.identity)
            own = _measured(record, dense.get((record.model, record.seed)), heads, tasks)
            rows.append(_cells("", "", "measured", _removed(record), own, heads))
            rows.append(_cells("", "", "difference", *_difference(row, record, own), heads))
    names = {model_name(row.llm, layout) for row in printed}
    for record in finished:
        if plain(record.model) in names or record.identity in used:
            continue
        if rows and before != (record.model,):
            sections.add(len(rows))
        before = (record.model,)
        own = _measured(record, dense.get((record.model, record.seed)), heads, tasks)
        rows.append(_cells(record.model, label(record), "measured", _removed(record), own, heads))
    lacking = [head for head in heads if head not in tasks and head not in (_AVERAGE, _RELATIVE)]
    notes = [f"Not evaluated here: {', '.join(lacking)}."] if lacking else []
    if tasks:
        pairs = ", ".join(f"{head} = {task} ({metric})" for head, (task, metric) in tasks.items())
        notes.append(f"Measured: {pairs}.")
    notes += _ratio_notes(ratios)
    return Table(
        name=f"published-{name}",
        title=f"{name}: published and measured, in percent",
        columns=("LLM", "method", "values", "ratio", *_RECOMPUTED, *heads),
        rows=tuple(rows),
        keys=4,
        words=3,
        sections=frozenset(sections),
        notes=(*notes, *(f"As printed. {note}" for note in published_slips(name))),
    )


def _task_names(
    heads: Sequence[str], records: Sequence[Record], given: Any
) -> dict[str, tuple[str, str]]:
    """Printed benchmark -> (task, metric), where a record has such a task."""
    chosen = given if isinstance(given, Mapping) else {}
    there = {
        task: result.metric
        for record in records
        for task, result in collapsed_tasks(record).items()
    }
    found = {}
    for head in heads:
        wanted = plain(head)
        wanted = _ALIASES.get(wanted, wanted)
        # The paper's own protocol before lm-eval's.
        fitting = sorted(
            (task for task in there if plain(task.removeprefix("streamline_")) == wanted),
            key=lambda task: not task.startswith("streamline_"),
        )
        task = chosen.get(head) or (fitting[0] if fitting else None)
        if task in there:
            found[head] = (task, there[task])
    return found


def _match(
    row: PublishedRow, records: Sequence[Record], layout: Mapping[str, Any]
) -> Record | None:
    """The finished cell to set beside a printed row: same model and method, nearest sparsity."""
    methods = layout.get("methods") or {}
    method = plain(methods.get(row.method, row.method))
    model = model_name(row.llm, layout)
    wanted = None if row.ratio is None else row.ratio / 100
    fitting = [
        record
        for record in records
        if plain(record.model) == model
        and plain(method_label(record.method, record.recovery)) == method
        and (wanted is None or abs(_removed_fraction(record) - wanted) <= _CLOSE)
    ]
    if wanted is None:
        return fitting[0] if len(fitting) == 1 else None
    return min(fitting, key=lambda record: abs(_removed_fraction(record) - wanted), default=None)


def _removed_fraction(record: Record) -> float:
    achieved = record.parameters.removed_fraction
    return record.sparsity if achieved is None else achieved


def _measured(
    record: Record,
    dense: Record | None,
    heads: Sequence[str],
    tasks: Mapping[str, tuple[str, str]],
) -> dict[str, float | None]:
    """A cell's values in percent under the printed headings."""
    values = _by_head(record, tasks)
    whole = all(head in tasks for head in heads if head not in (_AVERAGE, _RELATIVE))
    mean = average(values) if whole else None
    base = average(_by_head(dense, tasks)) if whole and dense is not None else None
    values[_AVERAGE] = mean
    values[_RELATIVE] = mean / base if mean is not None and base else None
    return {head: None if value is None else 100 * value for head, value in values.items()}


def _by_head(record: Record, tasks: Mapping[str, tuple[str, str]]) -> dict[str, float | None]:
    results = collapsed_tasks(record)
    return {
        head: results[task].value if task in results and results[task].metric == metric else None
        for head, (task, metric) in tasks.items()
    }


def _difference(
    row: PublishedRow, record: Record, own: Mapping[str, float | None]
) -> tuple[str, dict[str, float | None]]:
    """Measured minus published: the ratio as text, and the values."""
    removed = record.parameters.removed_fraction
    ratio = MISSING
    if removed is not None and row.ratio is not None:
        ratio = f"{100 * removed - row.ratio:+.2f}"
    values: dict[str, float | None] = {}
    for head, printed in row.values.items():
        mine = own.get(head)
        values[head] = mine - printed if mine is not None and printed is not None else None
    return ratio, values


def _printed_cells(row: PublishedRow, ratio: Ratio, heads: Sequence[str]) -> tuple[str, ...]:
    values = (row.values.get(head) for head in heads)
    return (
        row.llm,
        row.method,
        "published",
        fixed(row.ratio, ".1f"),
        fixed(ratio.as_paper, ".2f"),
        fixed(ratio.exact, ".2f"),
        *(fixed(value, ".1f") for value in values),
    )


def _ratio_notes(ratios: Mapping[tuple[str, str, float], Ratio]) -> list[str]:
    """What the recomputed columns are, and why some printed ratios do not come out."""
    if not ratios:
        return []
    notes = [
        "Recomputed ratios come from the configs alone: as the paper counts (its suite's "
        "report.ratio), and exact, as in measured rows: the fraction of all parameters."
    ]
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for (llm, method, _), ratio in ratios.items():
        if ratio.note:
            reasons.setdefault((llm, ratio.note), {})[method] = None
    notes += [
        f"Ratio of {llm} {', '.join(methods)}: {note}" for (llm, note), methods in reasons.items()
    ]
    return notes


def _cells(
    llm: str,
    method: str,
    kind: str,
    ratio: str,
    values: Mapping[str, float | None],
    heads: Sequence[str],
) -> tuple[str, ...]:
    form = "+.1f" if kind == "difference" else ".1f"
    shown = (fixed(values.get(head), form) for head in heads)
    return (llm, method, kind, ratio, *(MISSING for _ in _RECOMPUTED), *shown)


def _removed(record: Record) -> str:
    removed = record.parameters.removed_fraction
    return fixed(None if removed is None else 100 * removed, ".2f")
