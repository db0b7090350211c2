from __future__ import annotations

import json

import pytest

from streamline.cli.bar import Bar
from streamline.cli.show import show_error, show_json, show_table


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


def test_progress_without_a_terminal_is_one_line_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bar() as bar:
        bar.stage("calibrate", 3)
        bar.step(1, 3, "loss 2.1")
        bar.stage("train")
        bar.say("kept [best] weights")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["calibrate", "train", "kept [best] weights"]


def test_progress_ends_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="a fault"), Bar() as bar:
        bar.stage("train", 2)
        raise RuntimeError("a fault")
