"""The rows' outcomes as files: one JSON each, and a Markdown table over all that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from streamline.benchmarks.speed.common import Outcome
from streamline.files import write_json_atomic, write_text_atomic

__all__ = ["APART", "ROWS", "markdown", "save"]

ROWS = ("dense", "variants", "mmlu", "spans", "students", "sleb", "generation", "embedded")
"""The rows, in the order of the table; each is a module of this package."""
APART = ("generation", "embedded")
"""Rows that take long, run only by name."""

HEAD = """# Speed, measured against peers in one run

Made by `make speed`, that is `python -m streamline.benchmarks.speed [ROW ...]`. A ratio is the
peer's time over ours, the median of paired repetitions in one process; results are compared first,
and a row whose results differ has no number. `cpu` is the same ratio in processor time, steadier
where other programs run: the load stands with each row, with its day and commit. Sizes: `quick`
(the smallest), `default`, `full` (hours). A peak is the largest resident set beyond what was
loaded. What `make bench` takes: [make-bench.md](make-bench.md).
"""
COLUMNS = ("row", "work", "against", "target", "wall", "cpu", "size", "repetitions")


def save(outcome: Outcome, folder: Path, size: str) -> None:
    """Write a row's JSON, then the table over all rows that are there.

    A row at its full size is kept beside the same row at another.
    """
    name = f"{outcome.name}{'-full' if size == 'full' else ''}.json"
    write_json_atomic(folder / name, outcome.to_json() | {"size": size})
    files = [folder / f"{name}{end}.json" for name in ROWS for end in ("", "-full")]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    write_text_atomic(folder / "README.md", markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table and each row's notes; what was not measured is ``-``."""
    table = [
        (
            _name(row), row["work"], row["against"], _number(row["target"]), _number(row["ratio"]),
            _number(row["ratio_cpu"]), row["size"], len(row["races"]),
        )
        for row in rows
    ]  # fmt: skip
    lines = [HEAD, tabulate(table, COLUMNS, tablefmt="github", disable_numparse=True)]
    for row in rows:
        lines += ["", f"## {_name(row)}", ""]
        lines += [f"* {note}" for note in [*row["notes"], *_details(row)]]
    return "\n".join(lines) + "\n"


def _name(row: dict[str, Any]) -> str:
    return f"{row['name']}, full" if row["size"] == "full" else str(row["name"])


def _details(row: dict[str, Any]) -> list[str]:
    """Every repetition, what the comparison found, and the machine, a line each."""
    out = []
    for index, race in enumerate(row["races"], 1):
        wall, cpu, peak = race["wall_s"], race["cpu_s"], race["peak_bytes"]
        sides = []
        for side in wall:
            most = "-" if peak[side] is None else f"{peak[side] / 2**20:,.0f} MiB"
            sides.append(f"{side} {wall[side]:.2f} s (cpu {cpu[side]:.2f} s, peak {most})")
        out.append(
            "; ".join([f"repetition {index}: {sides[0]}", *sides[1:], *_found(race["facts"])])
        )
    out += _found(row["facts"])
    place = row["machine"]
    versions = ", ".join(f"{k} {row['versions'][k]}" for k in ("torch", "transformers", "lm-eval"))
    return [
        *out,
        f"{_made(row['made'])}; {place['processor']}, {place['cores']} cores, "
        f"{place['threads']} threads, {place['capability']}, load {place['load'][0]} at the end; "
        f"{versions}",
    ]


def _made(facts: dict[str, Any]) -> str:
    """The day of a measurement, and the commit that was measured where it is known."""
    commit = facts["commit"]
    return str(facts["date"]) + (f", commit {commit}" if commit else "")


def _found(facts: dict[str, Any]) -> list[str]:
    """Numbers of the comparison, and right answers of those asked; the rest is in the JSON."""
    out = []
    for key, value in facts.items():
        if key == "right":
            tasks = ", ".join(f"{task} {right}/{n}" for task, (right, n) in value.items())
            out.append(f"right on both sides, dense: {tasks}")
        elif isinstance(value, int | float):
            out.append(f"{key.replace('_', ' ')} {value:.2g}")
    return out


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
