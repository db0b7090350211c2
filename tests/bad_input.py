"""A folder of tiny inputs, and the real command in this process, for the tables of bad input."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_inputs import write_inputs

from streamline.cli.main import main

# What a message must not be: a traceback, or an exception as Python prints it.
_RAW = re.compile(r"Traceback|\b[A-Z]\w*(Error|Exception|Exit)\(")


@dataclass(frozen=True)
class Shown:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All of standard error without frames and line breaks."""
        return " ".join(re.sub("[│╭╮╰╯─]", " ", self.err).split())

    def refuses(self, message: str, code: int = 2) -> None:
        """Check that this is one message with these words, and neither a traceback nor a repr.

        Args:
            message: Its words; where `` ... `` stands, others may stand.
            code: The exit code.
        """
        pattern = ".*".join(map(re.escape, message.split(" ... ")))
        assert (self.code, message) == (
            code,
            message if re.search(pattern, self.words) else self.words,
        )
        assert not _RAW.search(self.err + self.out), self.err
        lines = self.err.splitlines()
        if code == 1:  # a log has each failed cell as it comes; at the end all are named
            assert lines[-1].startswith("failed: ") and re.search(pattern, lines[-1]), self.err
        else:
            errors = sum(line.startswith("error: ") for line in lines)
            assert errors + self.err.count("╭") == 1, self.err
        assert len(self.err) < 6_000


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text, questions in their original form, and a suite of them.

    ``model`` is a Llama of 6 layers, ``s.yaml`` runs it as dense and by shortgpt on two questions.
    """
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), n_questions=4)
    (folder / "s.yaml").write_text(yaml.safe_dump(base_suite()))
    return folder


@pytest.fixture(scope="session")
def damaged_runs(inputs: Path, run_folder: Path) -> Path:
    """The folder of inputs with ``ran``, a finished run, and copies of it with one damage each."""
    for name, file, content in _DAMAGES:
        shutil.copytree(run_folder, inputs / name)
        for path in [*(inputs / name).glob(file)] or [inputs / name / file]:
            path.write_bytes(content)
    shutil.copytree(run_folder, inputs / "ran")
    for name, change in _CHANGES.items():
        shutil.copytree(run_folder, inputs / name)
        path = inputs / name / "results.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content["records"])
        content.pop("checksum", None)  # as one who means it does
        path.write_text(json.dumps(content), encoding="utf-8")
    shutil.rmtree(inputs / "r-twice" / "samples")
    for name, content in _LOGS.items():
        (inputs / name).mkdir()
        (inputs / name / "samples_piqa_2024-01-01T00-00-00.000000.jsonl").write_bytes(content)
    (inputs / "file").write_text("x", encoding="utf-8")
    (inputs / "junk.parquet").write_bytes(b"junk")
    (inputs / "empty").mkdir()
    return inputs


# Name, which files, and what they are then.
_DAMAGES: list[tuple[str, str, bytes]] = [
    ("r-latin", "results.json", b'{"schema": 1, "records": ["\xe9"]}'),
    ("r-empty", "results.json", b""),
    ("r-list", "results.json", b"[]"),
    ("r-deep", "results.json", b"[" * 100_000),
    ("r-digits", "results.json", b'{"schema": ' + b"9" * 5_000 + b"}"),
    ("r-schema", "results.json", b'{"schema": 7, "records": []}'),
    ("r-records", "results.json", b'{"schema": 1, "records": [1, "x"]}'),
    ("j-latin", "run.json", b'{"data": "\xe9"}'),
    ("j-list", "run.json", b"[]"),
    ("p-empty", "samples/*.parquet", b""),
    ("p-junk", "samples/*.parquet", b"PAR1" + b"x" * 400 + b"PAR1"),
]
_CHANGES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "r-value": lambda records: records[0]["tasks"]["piqa"].update(value=1.7),
    "r-nan": lambda records: records[0]["tasks"]["piqa"].update(value=float("nan")),
    "r-twice": lambda records: records.append(records[1]),
}
_LOGS = {
    "log-latin": b'{"doc_id": 0, "\xe9": 1}\n',
    "log-fields": b'{"doc_id": 0}\n',
    "log-cut": b'{"doc_id": 0\n',
    "log-list": b"[1]\n",
}


def base_suite() -> dict[str, Any]:
    """A run of seconds, as a suite; its paths are relative to the folder of inputs."""
    text = {"texts": "text.jsonl", "length": 16}
    return {
        "models": "model",
        "methods": ["dense", "shortgpt"],
        "sparsities": [0.3],
        "tasks": "piqa",
        "limit": 2,
        "data_dir": "data",
        "device": "cpu",
        "efficiency": "off",
        "calibration": {**text, "n_samples": 4},
        "training": {
            **text, "n_tokens": 256, "batch_tokens": 64, "validation_tokens": 64, "evaluations": 1,
        },
        "perplexity": {**text, "n_tokens": 64},
    }  # fmt: skip


@pytest.fixture
def suite(inputs: Path, tmp_path: Path) -> Callable[..., str]:
    """``suite(text)`` or ``suite(**changes)``: a suite file, and its path.

    A text or bytes are the file as it is; changes are laid over :func:`base_suite`.
    """

    def write(content: str | bytes | None = None, **changes: Any) -> str:
        path = tmp_path / "suite.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = yaml.safe_dump(base_suite() | changes) if content is None else content
            path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def bench(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Shown]:
    """``bench("ls methods")``: the command in the folder of inputs; OUT is a folder of the test."""
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("STREAMLINE_CACHE", str(inputs / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> Shown:
        words = [word.replace("OUT", str(tmp_path / "out")) for word in shlex.split(line)]
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        found = capsys.readouterr()
        return Shown(code, found.out, found.err)

    return run
