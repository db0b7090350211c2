"""The command where things around it are odd: encodings, readers that leave, signals, launchers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import Shown

from streamline.cli.main import main

_SIGNALLED = """
import os, signal, sys, time
from streamline.cli import ls, main

def listed(*_):
    os.kill(os.getpid(), signal.{name})
    time.sleep(9)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
ls.show_table = listed
main.main(["ls", "suites"])
"""


def _code(arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("name", "code", "word"), [("SIGTERM", 143, "told to end"), ("SIGINT", 130, "interrupted")]
)
def test_a_signal_ends_it_with_one_line(name: str, code: int, word: str) -> None:
    script = _SIGNALLED.format(name=name)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"error: {word}") and "what is finished is kept" in line


@pytest.mark.parametrize("arguments", ["ls methods", "ls suites --json", "--version", "ls --help"])
def test_a_reader_that_leaves_ends_nothing(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", pipe)
        assert _code(arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("ls methods", "shortgpt"),
        ("ls tasks", "commonsense"),
        ("ls suites --json", "embedded"),
        ("ls suites --schema", "per_method"),
        ("run --help", "--methods"),
        ("--models llama2-7b --methods shortgpt --dry-run", "6,738,415,616"),
        ("--suite paper-table3 --print-config", "LLM-Streamline"),
        ("compare RUN", "shortgpt"),
        ("stability RUN:dense RUN:shortgpt@0.25", "piqa"),
        ("compare RUN --json", "shortgpt"),
        ("report RUN", "wrote"),
        ("cache ls", "cache"),
    ],
)
def test_a_terminal_of_ascii_shows_everything(
    arguments: str, words: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    ascii_only = io.TextIOWrapper(shown, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert _code(arguments.replace("RUN", str(run_copy))) == 0
    ascii_only.flush()
    assert words in shown.getvalue().decode("ascii")


_RUN = "--suite s.yaml --out OUT"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment, no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment, no number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1' in the environment, no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment, no number"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x' in the environment, no number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 in the environment, of 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT name no place"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"},
            "MASTER_ADDR and MASTER_PORT name no place",
        ),
    ],
)
def test_an_odd_environment_is_one_message(
    variables: dict[str, str],
    message: str,
    bench: Callable[..., Shown],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bench(_RUN).refuses(message)
