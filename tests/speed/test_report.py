"""The rows' files, the table over them and the command line."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from streamline.benchmarks.speed import common, report, spans
from streamline.benchmarks.speed.__main__ import main
from streamline.benchmarks.speed.common import Options, Outcome, Race
from streamline.files import write_json_atomic


def test_a_missed_target_is_profiled(
    options: Options, tiny: Callable[..., Any], tmp_path: Any
) -> None:
    tiny(spans, n_layers=4)
    outcome = spans.run(dataclasses.replace(options, repeats=1))
    assert outcome.again is not None
    rows = common.profile(outcome.again)
    assert sum(row["share"] for row in rows) > 0.3 and rows[0]["share"] >= rows[1]["share"]
    outcome.facts["profile"] = rows
    outcome.target = 1e9
    assert outcome.missed
    report.save(outcome, tmp_path, "quick")
    assert "profile (own time): " in (tmp_path / "README.md").read_text()


def test_files_of_a_row(tmp_path: Any) -> None:
    peaks = {"ours": 3 * 2**20, "theirs": None}
    races = [Race({"ours": 1.0, "theirs": 1.5}, {"ours": 1.0, "theirs": 1.6}, {}, peaks)]
    report.save(
        Outcome(name="sleb", work="w", against="a", target=1.8, races=races), tmp_path, "quick"
    )
    report.save(
        Outcome(name="scaling", work="w", against="a", target=None, facts={"svg": "<svg/>"}),
        tmp_path, "default",
    )  # fmt: skip
    found = json.loads((tmp_path / "sleb.json").read_text())
    assert found["ratio"] == 1.5 and found["memory_bytes"] is None and found["machine"]["threads"]
    text = (tmp_path / "README.md").read_text()
    assert " took " not in text  # nobody timed them
    assert "| sleb | w | a | 1.80 | 1.50 | 1.60 | no | quick | 1 |" in text
    assert "| scaling | w | a | - | - | - | - | default | - |" in text
    assert "* peak memory beyond what was loaded: ours 3 MiB\n" in text
    assert (tmp_path / "scaling.svg").read_text() == "<svg/>"
    report.save(
        Outcome(name="sleb", work="all", against="a", target=1.8, races=races), tmp_path, "full"
    )
    text = (tmp_path / "README.md").read_text()
    assert "| sleb | w | a |" in text and "| sleb, full | all | a |" in text


def test_command_line(
    tmp_path: Any, tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny(spans, n_layers=4)
    command = ["spans", "--quick", "--repeats", "1", "--no-memory", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "1 row took 0 minutes" in (tmp_path / "README.md").read_text()
    assert "spans: " in capsys.readouterr().out and (tmp_path / "spans.json").is_file()
    (tmp_path / "spans.json").unlink()
    monkeypatch.setattr(spans, "TOLERANCE", -1.0)
    assert main(command) == 1
    assert "spans: FAILED" in capsys.readouterr().out
    assert not (tmp_path / "spans.json").exists()
    with pytest.raises(SystemExit):
        main(["no-such-row"])
    assert "no row no-such-row" in capsys.readouterr().err


def test_every_row_has_a_module_and_a_committed_table_is_readable(tmp_path: Any) -> None:

    for name in report.ROWS:
        module = importlib.import_module(f"streamline.benchmarks.speed.{name}")
        assert callable(module.run)
    write_json_atomic(tmp_path / "x.json", Outcome(
        name="x", work="w", against="a", target=1.0).to_json())  # fmt: skip
