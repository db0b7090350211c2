"""Bad input, as a hurried user gives it: one message with a way out, exit code 2, no traceback."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from streamline.cli.main import main
from streamline.results.record import Record
from streamline.results.record_file import upsert
from streamline.run import pipeline
from streamline.run.config import RunConfig

_SUITES = {
    "cut.yaml": "models: [a\n",
    "binary.yaml": "\ufffe",
    "empty.yaml": "",
    "list.yaml": "- a\n",
    "typo.yaml": "models: a\nmethods: dense\nsparsitys: 0.1\n",
    "shape.yaml": "models: a\nmethods: dense\ncalibration: 7\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with broken suites, a file, an empty folder and a run of three cells."""
    monkeypatch.chdir(tmp_path)
    for name, text in _SUITES.items():
        encoding = "utf-16" if name == "binary.yaml" else "utf-8"
        Path(name).write_text(text, encoding=encoding)
    Path("file").write_text("x", encoding="utf-8")
    Path("empty").mkdir()
    for method in ("dense", "shortgpt", "uidl"):
        cell = {"model": "m", "method": method, "sparsity": 0.0, "status": "ok"}
        upsert("ran", cell)
    upsert("odd", {"model": "m", "method": "dense", "sparsity": 0.0, "status": "ok"})
    Path("odd/results.json").write_text('{"schema": 1, "records": [{"model": 3}]}')
    return tmp_path


def _exit(arguments: str) -> int:
    with pytest.raises(SystemExit) as info:
        main(arguments.split())
    return int(info.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--suite cut.yaml", "the suite cut.yaml is not YAML"),
        ("--suite binary.yaml", "the suite binary.yaml is not YAML in UTF-8"),
        ("--suite empty.yaml", "must be a mapping of a run's fields, such as `models: opt-1.3b`"),
        ("--suite list.yaml", "got list"),
        ("--suite typo.yaml", "in suite 'typo.yaml': sparsitys is not a field of a run; did you"),
        ("--suite typo.yaml --limit -3", "bad settings: limit: input should be greater"),
        ("--suite shape.yaml", "calibration: must be a mapping of fields (given: 7)"),
        ("--suite none.yaml", "unknown suite file 'none.yaml'"),
        ("--models a --methods dense --limit 2.5", "limit: input should be a valid integer"),
        ("--models a --methods dense --out file", "out: file is a file; a run writes a folder"),
        ("--models a --methods dense --out file/x/y", "out: file is a file"),
        ("--models a --methods dense --device gpu", "device: use auto, cpu, mps, cuda, or cuda:N"),
        ("--models a --methods dense --tasks piqua", "unknown task or group 'piqua'. Did you mean"),
        ("--models a --methods dense --tasks piqua --dry-run", "unknown task or group 'piqua'"),
        ("--models a --methods dense --calibration nowhere", "Text 'nowhere' does not exist"),
        ("--models a --methods dense --calibration empty", "holds no .jsonl or .txt file"),
        ("--models a --methods dense --calibration file", "is no .jsonl or .txt file"),
        ("--models a --methods dense --data-dir file", "data_dir: path does not point to a dir"),
        ("--models a --methods llm-streamline-ffn+residual=maybe", "valid boolean"),
        ("prune a --method all --sparsity 0.1 --out x", "it needs one of methods, got"),
        ("prune a --method sleb --sparsity 0.1,0.2 --out x", "one of sparsities, got 0.1, 0.2"),
        ("prune a --method sleb --sparsity many --out x", "sparsities: input should be a valid"),
        ("prune a --method sleb --sparsity 0.1 --out file", "out: file is a file"),
        ("evaluate a --tasks piqa --out empty", "empty cannot be the record: give the name of a"),
        ("evaluate a --tasks piqa --out e.parquet", "such as e.json"),
        ("evaluate a --tasks piqa --out file/x.json", "out: file is a file"),
        ("report empty", "No results.json in empty"),
        ("report file", "'file' is no folder; give the folder that a run wrote"),
        ("report odd", "odd/results.json: Not a record of schema 1: model: "),
        ("compare ran ran", "ran is given twice"),
        ("compare none", "none does not exist"),
        ("stability empty empty", "empty holds no predictions"),
        ("validate dense --families ,", "--families is empty; name some of"),
    ],
)
def test_bad_input_is_one_message(
    arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_message_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, progress: object, redo: object) -> list[Record]:
        raise OSError(errno.ENOSPC, "No space left on device", "out/run/results.json")

    monkeypatch.setattr(pipeline, "run", fail)
    assert _exit("--models a --methods dense") == 2
    error = capsys.readouterr().err
    assert "error: No space left on device: out/run/results.json. What is finished is kept" in error
    with pytest.raises(OSError, match="No space left"):
        main(["--models", "a", "--methods", "dense", "--debug"])


def test_an_interrupt_ends_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, progress: Any, redo: object) -> list[Record]:
        progress.stage("train", 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", fail)
    assert _exit("--models a --methods dense") == 130
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: interrupted; what is finished is kept")
    assert "Traceback" not in error
