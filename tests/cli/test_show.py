from __future__ import annotations

import json
import re
import threading
import time

import pytest
from rich.console import Console

from streamline.cli.screen.bar import Bar, Log, progress_display
from streamline.cli.screen.show import show_error, show_json, show_table


def test_a_table_is_aligned_and_shows_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "a", "value": None, "on": True, "many": ["x", "y"]},
        {"name": "longer", "value": 0.5, "on": False},
    ]
    show_table(rows, ("name", "value", "on", "many"))
    assert capsys.readouterr().out.splitlines() == [
        "name    value  on   many",
        "------  -----  ---  ----",
        "a       -      yes  x, y",
        "longer  0.5    no   -",
    ]


def test_on_a_terminal_a_table_is_cut_to_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    show_table([{"name": "n" * 30, "title": "t" * 30, "k": 0.123456}], ("name", "title", "k"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 40
    assert lines[2].split() == ["n" * 14 + "…", "t" * 14 + "…", "0.1235"]


def test_a_table_without_rows_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([], ("name", "value"))
    assert capsys.readouterr().out.splitlines() == ["name  value", "----  -----"]


def test_json_keeps_letters_and_refuses_what_is_no_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_json({"ü": None})
    assert json.loads(capsys.readouterr().out) == {"ü": None}
    with pytest.raises(ValueError, match="JSON compliant"):
        show_json(float("nan"))


def test_an_error_is_taken_literally_and_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]x[/bold] " + "word " * 60 + "end"
    show_error(ValueError(message))
    assert capsys.readouterr().err == f"error: {message}\n"


def _wait_for(pattern: str, capsys: pytest.CaptureFixture[str]) -> tuple[re.Match[str], list[str]]:
    """The first line on standard error that fits, within ten seconds, and all lines until then."""
    seen = ""
    for _ in range(1000):
        seen += capsys.readouterr().err
        found = re.search(f"^{pattern}$", seen, re.MULTILINE)
        if found is not None:
            return found, seen.splitlines()
        time.sleep(0.01)
    raise AssertionError(seen)


def test_a_log_names_a_stage_that_lasts_and_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True, soft_wrap=True), seconds=0.1) as log:
        log.stage("search", 8)
        log.step(1, 8)
        log.say("kept [best] weights")
        log.step(3, 8, "loss 2.1")
        _, lines = _wait_for(r"search: 3/8, \d\.\d s so far, about \d\.\d s left loss 2\.1", capsys)
    assert {"kept [best] weights", "search"} < set(lines)


def test_a_stage_that_does_not_last_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    with Log(Console(stderr=True), seconds=20) as log:
        log.stage("too short to name")
        log.step(1, 2)
    assert capsys.readouterr().err == ""


def test_a_log_is_not_silent_when_the_work_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Log(Console(stderr=True), seconds=0.05) as log:
        log.stage("long search")
        _wait_for(r"long search: \d\.\d s so far", capsys)


def test_the_time_left_leaves_out_what_an_earlier_process_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True), seconds=0.1) as log:
        log.stage("train")
        log.step(900, 1000)
        time.sleep(0.05)
        log.step(901, 1000)
        found, _ = _wait_for(r"train: 901/1,000, .* so far, about (.*) left", capsys)
    assert not found[1].startswith("0.")  # 99 units at 0.05 s or more each


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Log)])
def test_the_display_fits_standard_error(
    terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", terminal)
    assert type(progress_display()) is kind


@pytest.mark.parametrize("kind", [Bar, Log])
def test_progress_ends_after_an_error(kind: type[Bar] | type[Log]) -> None:
    with pytest.raises(RuntimeError, match="a fault"), kind(Console(stderr=True)) as display:
        display.stage("train", 2)
        display.step(1, 2)
        raise RuntimeError("a fault")


def test_a_log_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with Log(Console(stderr=True)):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
