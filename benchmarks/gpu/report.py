"""The rows as files: one JSON with everything, one Markdown table; both written after each row."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from streamline.files import write_json_atomic, write_text_atomic

__all__ = ["Report"]

_COLUMNS = ("row", "work", "against", "ours, s", "peer, s", "ratio", "aim", "peak, GiB", "peer's")
_NOTES = "notes.md"
_HEAD = """# One accelerator, measured against peers in one process

Made by `make gpu`, that is `python -m streamline.benchmarks.gpu`. A ratio is the peer's time over
ours, the median of the repetitions; results are compared first, and a row whose results differ has
no number. A peak is all that the device holds, weights included; on a CPU, what the process holds
beyond the model.
"""


@dataclass(kw_only=True)
class Report:
    """What was measured so far.

    Attributes:
        folder: Where ``gpu.json`` and ``README.md`` are written.
        facts: Day and commit, shape, device, dtype, versions, arguments.
        rows: Each row as JSON.
        failed: By row, why it has no number.
        skipped: Rows for which no time was left.
    """

    folder: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write both files."""
        data = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json_atomic(self.folder / "gpu.json", {"schema": 1, **data})
        write_text_atomic(self.folder / "README.md", self.markdown())

    def markdown(self) -> str:
        """The table and each row's findings; what was not measured is ``-``."""
        versions, made = self.facts["versions"], self.facts["made"]
        names = ("torch", "transformers", "lm-eval")
        commit = f", commit {made['commit']}" if made["commit"] else ""
        place = (
            f"{made['date']}{commit}: {self.facts['device']}, {platform.system()}, "
            f"Llama of shape {self.facts['shape']} with random weights in {self.facts['dtype']}, "
            f"{self.facts['inputs']} questions; "
            + ", ".join(f"{name} {versions[name]}" for name in names)
        )
        table = tabulate(
            [_line(row) for row in self.rows], _COLUMNS, tablefmt="github", disable_numparse=True
        )
        lines = [_HEAD, place + ".", "", table]
        if (self.folder / _NOTES).is_file():
            lines += ["", f"What bounds the rows that miss their aims: [{_NOTES}]({_NOTES})."]
        for row in self.rows:
            lines += ["", f"## {row['name']}", ""]
            lines += [f"* {note}" for note in row["notes"]]
            lines += [f"* repetition {i}: {_facts(r['facts'])}" for i, r in _numbered(row["races"])]
            lines += [
                f"* {name.replace('_', ' ')}: {_value(v)}" for name, v in row["facts"].items()
            ]
        for name, reason in self.failed.items():
            lines += ["", f"## {name}", "", f"* failed: {reason}"]
        if self.skipped:
            lines += ["", f"No time was left for: {', '.join(self.skipped)}."]
        return "\n".join(lines) + "\n"


def _numbered(races: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(races, 1))


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    best = {
        side: min((race["wall_s"][side] for race in row["races"]), default=None)
        for side in ("ours", "theirs")
    }
    return (
        row["name"], row["work"], row["against"], _value(best["ours"]), _value(best["theirs"]),
        _value(row["ratio"]), _value(row["target"]), _peak(row, "ours"), _peak(row, "theirs"),
    )  # fmt: skip


def _peak(row: dict[str, Any], side: str) -> str:
    known = [race["peak_bytes"][side] for race in row["races"]]
    return "-" if not known or None in known else f"{max(known) / 2**30:.1f}"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in facts.items())


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    return str(value)
