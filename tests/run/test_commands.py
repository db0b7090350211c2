from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from streamline import __version__
from streamline.progress import clock
from streamline.report.names import COMMANDS
from streamline.run.commands import commanded, commands_of, made_with, note_command


def test_a_folder_lists_the_commands_that_made_it(tmp_path: Path) -> None:
    note_command(tmp_path)  # called from Python: there is no command
    assert not (tmp_path / COMMANDS).exists()
    assert commands_of(tmp_path) == []
    for arguments in (["--suite", "smoke"], ["rm", "out", "dense"]):
        with commanded(arguments):
            note_command(tmp_path)
    listed = json.loads((tmp_path / COMMANDS).read_text(encoding="utf-8"))
    assert [entry["argv"] for entry in listed] == [["--suite", "smoke"], ["rm", "out", "dense"]]
    assert {entry["version"] for entry in listed} == {__version__}
    with commanded(["--suite", "smoke"]):
        note_command(tmp_path)
    assert commands_of(tmp_path) == [
        "streamline-bench --suite smoke",
        "streamline-bench rm out dense",
    ]
    assert all(entry["time"].endswith("+00:00") for entry in listed)


def test_a_command_s_time_is_known_when_it_has_ended(tmp_path: Path) -> None:
    def seconds() -> list[float | None]:
        listed = json.loads((tmp_path / COMMANDS).read_text(encoding="utf-8"))
        return [entry["seconds"] for entry in listed]

    with pytest.raises(KeyboardInterrupt), commanded(["--suite", "smoke"]):
        note_command(tmp_path)
        assert seconds() == [None] and "time" not in made_with(tmp_path)
        time.sleep(0.1)
        raise KeyboardInterrupt
    (first,) = seconds()
    assert first is not None and 0.1 <= first < 60
    with commanded(["rm", "out", "dense"]):
        note_command(tmp_path)
        assert seconds() == [first, None]
        assert made_with(tmp_path)["time"] == f"at least {clock(first)}"
    first, second = seconds()
    assert first is not None and second is not None
    assert made_with(tmp_path)["time"] == clock(first + second)


def test_when_and_with_what_code_a_folder_was_made(tmp_path: Path) -> None:
    assert made_with(tmp_path) == {}
    entries = [
        {"time": "2026-01-02T10:00:00+00:00", "argv": [], "commit": "abc", "seconds": 3590.0},
        {"time": "2026-01-03T10:00:00+00:00", "argv": [], "commit": "abc", "seconds": 72.4},
        {"time": "2026-01-04T10:00:00+00:00", "argv": []},
    ]
    (tmp_path / COMMANDS).write_text(json.dumps(entries), encoding="utf-8")
    assert made_with(tmp_path) == {
        "first command": "2026-01-02T10:00:00+00:00",
        "last command": "2026-01-04T10:00:00+00:00",
        "commit": "abc",
        "time": "at least 1 h 01 min",
    }
