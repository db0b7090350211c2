"""`prune` and `verify`: the folder that is written, and the folders that are not touched."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from streamline.checkpoints import self_test
from streamline.cli.main import main
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", n_layers=4).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text("some text that is long enough to calibrate with. " * 400)
    return folder


def status(command: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(shlex.split(command))
    code = exited.value.code
    assert isinstance(code, int)
    return code


def prune(model: Path, out: str) -> str:
    text = model / "text.txt"
    return (
        f"prune {model} --method last-layers --sparsity 0.2 --device cpu --calibration {text}:all "
        f"--calibration-samples 2 --no-verify --out {out}"
    )


def test_the_home_is_expanded_and_a_folder_not_verified_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert status(prune(model, "'~/short'")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "short")
    assert {path.name for path in tmp_path.iterdir()} == {"short"}
    facts = json.loads((tmp_path / "short" / "provenance.json").read_text())
    assert facts["verified"] is False


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("''", "cannot be written to ''; name a folder"),
        ("/", "cannot be written to '/'; name a folder"),
        ("full", "full exists and is not empty"),
        ("short", "short.unfinished is where the work for .*/short would be kept, and it holds"),
    ],
)
def test_folders_that_are_refused(
    out: str,
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("full", ".short.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("kept")
    assert status(prune(model, out)) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert re.search(message, " ".join(shown.split()))
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert files == [".short.unfinished", ".short.unfinished/mine", "full", "full/mine"]


def test_verify_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {
        "keys": {},
        "finite": True,
        "dtype": "float32",
        "class": "LlamaForCausalLM",
        "largest_logit": 1.0,
        "max_logit_difference": 0.0,
        "max_log_probability_difference": 0.0,
        "continuation_gap": 0.0,
    }
    given: list[Any] = []

    def reports(*folders: Path, trust_remote_code: bool) -> list[dict[str, Any]]:
        given.append((folders, trust_remote_code))
        return [same | {"folder": str(f)} for f in folders[:-1]] + [
            {"folder": str(folders[-1]), "error": "OSError: no weights"} for _ in folders[1:]
        ]

    monkeypatch.setattr(self_test, "fresh_reports", reports)
    assert status("verify a b --trust-remote-code") == 1
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()[-2:]] == [
        ["a", "same"], ["b", "differs"],
    ]  # fmt: skip
    assert "b: cannot be loaded by a fresh process: OSError: no weights" in shown.err
    assert given == [((Path("a"), Path("b")), True)]


def test_verify_takes_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(f"verify {tmp_path}") == 2
    assert "only saved checkpoints can be verified" in " ".join(capsys.readouterr().err.split())
