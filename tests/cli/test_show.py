from __future__ import annotations

import json

import pytest

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


def test_a_table_that_is_shown_whole_goes_on_below_and_parts_no_word_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    row = {"cell": "streamline-v1-mlp-shared 0.25", "fits with": "2 processes or 33.1 GiB"}
    show_table([row], ("cell", "fits with"), whole=True)
    assert capsys.readouterr().out.splitlines() == [
        "cell                      fits with",
        "------------------------  --------------",
        "streamline-v1-mlp-shared  2 processes or",
        "0.25                      33.1 GiB",
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
