"""Published numbers as printed, with notes on what in them disagrees with itself.

The CSV files lie in ``reports/published`` of the repository and are installed as
``streamline.published``.

Example::

    for row in published_rows("v1_table1_ppl"):
        row.llm, row.method, row.values["PIQA"]
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from streamline.errors import UnknownNameError

__all__ = [
    "PublishedRow",
    "Ratio",
    "model_name",
    "plain",
    "published_names",
    "published_ratios",
    "published_rows",
    "published_slips",
]

_PACKAGE = "streamline.published"
_SLIPS = "known_slips"
_RATIOS = "recomputed_ratios"


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One printed row.

    Attributes:
        llm: The model's name as printed.
        method: The method's name as printed.
        ratio: The printed pruning ratio in percent, None where none is printed.
        values: Benchmark -> value in percent, None where a dash is printed; in printed order.
        block: Number of the block; each Dense row of a model begins one.
    """

    llm: str
    method: str
    ratio: float | None
    values: Mapping[str, float | None] = field(default_factory=dict)
    block: int = 0


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A printed ratio recomputed from the model's config alone, in percent.

    Attributes:
        layers: Layers that go; None where the method has no number of layers.
        as_paper: The ratio by the paper's way of counting, None where it cannot be recomputed.
        exact: The fraction of all parameters that goes, None likewise.
        note: Why the printed number does not come out, or empty.
    """

    layers: int | None = None
    as_paper: float | None = None
    exact: float | None = None
    note: str = ""


def published_names() -> list[str]:
    """The tables that there are."""
    return sorted(
        entry.name.removesuffix(".csv")
        for entry in resources.files(_PACKAGE).iterdir()
        if entry.name.startswith("v1_") and entry.name.endswith(".csv")
    )


def published_rows(name: str) -> list[PublishedRow]:
    """A table's rows in printed order.

    Args:
        name: Such as ``v1_table1_ppl``.

    Returns:
        The rows. A dense row that is printed again for another ratio is there again.

    Raises:
        UnknownNameError: If there is no such table.
    """
    if name not in published_names():
        raise UnknownNameError(
            f"No published table {name!r}; there are {', '.join(published_names())}."
        )
    rows: list[PublishedRow] = []
    open_key: tuple[str, ...] | None = None
    values: dict[str, float | None] = {}
    block = -1
    for cell in _read(name):
        key = (cell["llm"], cell["method"], cell["ratio_percent"])
        if key != open_key or cell["benchmark"] in values:
            open_key, values = key, {}
            block += cell["method"] == "Dense" or block < 0
            ratio = float(key[2]) if key[2] else None
            rows.append(
                PublishedRow(llm=key[0], method=key[1], ratio=ratio, values=values, block=block)
            )
        values[cell["benchmark"]] = None if cell["value"] == "-" else float(cell["value"])
    return rows


def published_slips(name: str) -> list[str]:
    """Notes on what disagrees with itself in a table, each naming its cell."""
    notes = []
    for row in _read(_SLIPS):
        if row["file"] == name:
            ratio = f"{row['ratio_percent']} %" if row["ratio_percent"] else ""
            where = ", ".join(
                word for word in (row["llm"], row["method"], ratio, row["benchmark"]) if word
            )
            notes.append(f"{where}: {row['note']}")
    return notes


def published_ratios(name: str) -> dict[tuple[str, str, float], Ratio]:
    """A table's ratios as they come out of the configs.

    ``python -m streamline.benchmarks.ratios`` writes them; they are kept as data so that a report
    needs no model library.

    Returns:
        (model, method, ratio), all as printed, to the recomputed ratio; empty for a table that
        prints none.
    """
    return {
        (row["llm"], row["method"], float(row["ratio_percent"])): Ratio(
            layers=int(row["layers"]) if row["layers"] else None,
            as_paper=float(row["as_paper_percent"]) if row["as_paper_percent"] else None,
            exact=float(row["exact_percent"]) if row["exact_percent"] else None,
            note=row["note"],
        )
        for row in _read(_RATIOS)
        if row["file"] == name
    }


def model_name(llm: str, layout: Mapping[str, Any]) -> str:
    """The alias of a printed model in a layout, for matching."""
    models = layout.get("models") or {}
    return plain(models.get(llm, llm))


def plain(name: str) -> str:
    """A name without case, punctuation and folder, for matching."""
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())


def _read(name: str) -> list[dict[str, str]]:
    text = (resources.files(_PACKAGE) / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
