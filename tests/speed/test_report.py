"""The rows' files, the table over them and the command line."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.benchmarks.speed import report, spans
from streamline.benchmarks.speed.__main__ import main
from streamline.benchmarks.speed.common import Outcome, Race


def test_files_of_a_row(tmp_path: Path) -> None:
    race = Race(
        wall_s={"ours": 1.0, "theirs": 1.5},
        cpu_s={"ours": 1.0, "theirs": 1.6},
        peak_bytes={"ours": 3 * 2**20, "theirs": None},
        facts={"max_difference": 2e-4, "right": {"piqa": [1, 2]}, "order": [3, 1]},
    )
    row = Outcome(name="sleb", work="w", against="a", target=1.8, races=[race])
    report.save(row, tmp_path, "quick")
    report.save(Outcome(name="embedded", work="w", against="a"), tmp_path, "default")
    row.work = "all"
    report.save(row, tmp_path, "full")
    found = json.loads((tmp_path / "sleb.json").read_text())
    assert found["ratio"] == 1.5 and found["ratio_cpu"] == 1.6 and found["machine"]["threads"]
    text = (tmp_path / "README.md").read_text()
    cells = [[c.strip() for c in s.split("|")[1:-1]] for s in text.splitlines() if s[:1] == "|"]
    assert cells[2:] == [
        ["sleb", "w", "a", "1.80", "1.50", "1.60", "quick", "1"],
        ["sleb, full", "all", "a", "1.80", "1.50", "1.60", "full", "1"],
        ["embedded", "w", "a", "-", "-", "-", "default", "0"],
    ]
    assert (
        "* repetition 1: ours 1.00 s (cpu 1.00 s, peak 3 MiB); theirs 1.50 s (cpu 1.60 s, peak -); "
        "max difference 0.0002; right on both sides, dense: piqa 1/2\n"
    ) in text


def test_command_line(
    tmp_path: Path, tiny: Callable[[int], Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny(4)
    command = ["spans", "--quick", "--repeats", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "spans: " in capsys.readouterr().out and (tmp_path / "spans.json").is_file()
    (tmp_path / "spans.json").unlink()
    monkeypatch.setattr(spans, "TOLERANCE", -1.0)
    assert main(command) == 1
    assert "spans: FAILED" in capsys.readouterr().out
    assert not (tmp_path / "spans.json").exists()
    with pytest.raises(SystemExit):
        main(["no-such-row"])
    assert "no row no-such-row" in capsys.readouterr().err


def test_every_row_is_a_module_with_a_committed_outcome() -> None:
    folder = Path(__file__).parents[2] / "reports" / "speed"
    for name in report.ROWS:
        assert callable(importlib.import_module(f"streamline.benchmarks.speed.{name}").run)
    files = [folder / f"{name}{end}.json" for name in report.ROWS for end in ("", "-full")]
    rows = [json.loads(file.read_text()) for file in files if file.is_file()]
    assert [row["name"] for row in rows if row["size"] != "full"] == list(report.ROWS)
    assert (folder / "README.md").read_text() == report.markdown(rows)
