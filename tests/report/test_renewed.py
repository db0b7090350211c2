"""A report takes the place of the one before: what it does not have goes, and nothing of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from undrawn import leave_blank

from streamline.files import write_json_atomic
from streamline.report.report import write_report
from streamline.report.runs import RunFolder
from streamline.results.record import Record

LIST = ".report.json"


def cell(method: str, sparsity: float = 0.0, status: str = "ok", **more: Any) -> Record:
    tasks = {"piqa": {"metric": "acc", "value": 0.6 - sparsity, "n": 40}}
    plan = {"removed_layers": [2, 3], "kept_layers": [0, 1, 4, 5]}
    found = {"tasks": tasks, "summary": {"accuracy": 0.6 - sparsity}, "plan": plan}
    known = {"model": "m", "method": method, "sparsity": sparsity, "status": status}
    return Record.build(known | (found if status == "ok" else {}) | more)


WIDE = [
    cell("dense"),
    cell("shortgpt", 0.1),
    cell("shortgpt", 0.25),
    cell("sleb", 0.25),
    cell("laco", 0.25, "failed", reason="no"),
]
NARROW = [cell("dense"), cell("shortgpt", 0.1)]


@pytest.fixture(autouse=True)
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn: only their files' names matter."""
    leave_blank(monkeypatch.setattr)


def report(out: Path, records: Sequence[Record]) -> set[str]:
    """A report of some cells; the files that lie in its folder then."""
    write_report(out, [RunFolder(path=out, records=records)])
    return {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}


def test_what_is_not_there_any_more_goes_and_what_is_the_users_stays(tmp_path: Path) -> None:
    before, after = report(tmp_path / "out", WIDE), report(tmp_path / "new", NARROW)
    gone = before - after
    assert {"tables/failures.tex", "figures/layers-m-0.25.svg", "figures/layers-m-0.25.pdf"} <= gone
    mine = {"tables/notes.tex", "figures/layers-m-0.5.svg", "README.md"}
    for name in mine:
        (tmp_path / "out" / name).write_text("mine")
    assert report(tmp_path / "out", NARROW) == after | mine
    assert report(tmp_path / "out", WIDE) == before | mine


def test_what_the_user_has_changed_stays(tmp_path: Path) -> None:
    report(tmp_path, WIDE)
    table = tmp_path / "tables" / "failures.tex"
    table.write_text(table.read_text() + "% as in the paper\n")
    assert "tables/failures.tex" in report(tmp_path, NARROW)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"[" * 100_000, b"\xff"])
def test_without_its_list_nothing_is_removed(tmp_path: Path, content: bytes) -> None:
    before = report(tmp_path, WIDE)
    (tmp_path / LIST).write_bytes(content)
    assert before - report(tmp_path, NARROW) == set()
    assert {"tables/failures.tex"} <= before


def test_a_list_from_elsewhere_removes_nothing_but_a_reports_files(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other.txt"
    report(out, NARROW)
    places = [other, out / "results.json", out / "tables" / "deep" / "file.tex"]
    names = ["../other.txt", "tables/../../other.txt", str(other), "results.json"]
    for file in places:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    names += ["tables/deep/file.tex", "tables/..", "tables", ""]
    write_json_atomic(out / LIST, dict.fromkeys(names, hashlib.sha256(b"x").hexdigest()))
    report(out, NARROW)
    assert all(file.read_text() == "x" for file in places)
    write_json_atomic(out / LIST, names)
    report(out, NARROW)
