"""Optional files that are damaged are left out of a report with their reason; nothing of others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.kept import write_tensors
from streamline.results.record_file import load
from streamline.results.samples import samples_path

LOSSES = "losses/*ffn*.jsonl"
CALIBRATION = "cache/calibration/*/calibration.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garble(file: Path) -> None:
    file.write_bytes(b"\xff\xfe" * 40)


def nan_loss(file: Path) -> None:
    file.write_text('{"step": 0, "validation_loss": NaN}\n{"step": 1, "validation_loss": 1.0}\n')


def list_of_numbers(file: Path) -> None:
    file.write_text("[1]\n")


def nan_cosine(file: Path) -> None:
    write_tensors(file, {"cosine": torch.full((3, 3), torch.nan, dtype=torch.float64)})


def flat_cosine(file: Path) -> None:
    write_tensors(file, {"cosine": torch.ones(1, 2, dtype=torch.float64)})


def flip(file: Path) -> None:
    """Another figure, in a file that its readers still understand."""
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x10
    file.write_bytes(data)


def reported(folder: Path) -> str:
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, repr(result.exception)
    return (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("pattern", "damage", "words"),
    [
        (LOSSES, cut, "Losses left out"),
        (LOSSES, garble, "Losses left out"),
        (LOSSES, nan_loss, "Losses left out"),
        (LOSSES, list_of_numbers, "is no loss curve"),
        (CALIBRATION, cut, "Calibration left out"),
        (CALIBRATION, empty, "Calibration left out"),
        (CALIBRATION, garble, "Calibration left out"),
        (CALIBRATION, flip, "its content does not have its checksum"),
        (CALIBRATION, nan_cosine, "cosine has shape"),
        (CALIBRATION, flat_cosine, "cosine has shape"),
    ],
)
def test_a_damaged_optional_file_is_left_out_with_its_reason(
    run_copy: Path, pattern: str, damage: Callable[[Path], None], words: str
) -> None:
    files = sorted(run_copy.glob(pattern))
    damage(files[0])
    text = reported(run_copy)
    assert words in text and files[0].name in text
    assert "Models that share a letter" in text


@pytest.mark.parametrize("damage", [cut, empty, garble])
def test_a_cell_whose_samples_cannot_be_read_leaves_the_others(
    run_copy: Path, damage: Callable[[Path], None]
) -> None:
    broken = next(record for record in load(run_copy) if record.method == "shortgpt")
    damage(samples_path(run_copy, broken))
    text = reported(run_copy)
    assert "shortgpt@0.1: left out. " in text
    assert "Target 0.1: Difference in accuracy against dense" in text
    result = CliRunner().invoke(app, ["compare", str(run_copy), "--no-tasks"])
    assert result.exit_code == 1
    assert "left out: shortgpt@0.1" in result.stderr
    assert "llm-streamline-ffn@0.1" in result.stdout and "shortgpt@0.1" not in result.stdout


def test_a_report_takes_nothing_of_runs_in_folders_below(run_copy: Path, tmp_path: Path) -> None:
    alone = reported(run_copy)
    inner = Path(shutil.copytree(run_copy, tmp_path / "inner"))
    [kept] = inner.glob(CALIBRATION)
    cosine = torch.eye(5, dtype=torch.float64) / 2 + 0.5
    write_tensors(kept, {"cosine": cosine}, {"facts": '{"facts": {"model": "other"}}'})
    shutil.copytree(inner, run_copy / "inner")
    shutil.copytree(inner, run_copy / "losses" / "inner")
    assert reported(run_copy) == alone
