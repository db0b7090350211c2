"""A run's folder that commit 2e8522c left is read and reported by the present code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.report.artifacts import loss_curves
from streamline.results.predictions import read_cells
from streamline.results.record import label
from streamline.results.record_file import load
from streamline.results.stability import stability

FOLDER = Path(__file__).parents[1] / "data" / "commit_2e8522c" / "run"
LAYER = "smollm2-135m-instruct--llm-streamline-layer--0.1--s0--none--fa90f58f"


def _only(old, new):
    """The keys of an old value, as the new one has them."""
    return {key: _only(old[key], new[key]) for key in old} if isinstance(old, dict) else new


def test_every_record_is_read_as_it_was_written():
    written = json.loads((FOLDER / "results.json").read_text())["records"]
    read = [record.to_json() for record in load(FOLDER)]
    assert [label(record) for record in load(FOLDER)] == [
        "dense",
        "shortgpt@0.1",
        "llm-streamline-none@0.1",
        "llm-streamline-layer@0.1",
    ]
    assert [_only(old, new) for old, new in zip(written, read, strict=True)] == written


def test_the_samples_give_the_recorded_values_again():
    cells = read_cells(FOLDER)
    dense = cells["dense"].tasks
    for cell in cells.values():
        for task, result in cell.record.tasks.items():
            found = stability(dense[task], cell.tasks[task])
            assert found.accuracy_pruned == result.value
            assert found.value == pytest.approx(result.stability, abs=1e-12)
            assert found.counts() == result.extra("counts")


def test_the_folder_is_reported(tmp_path):
    out = Path(shutil.copytree(FOLDER, tmp_path / "out"))
    result = CliRunner().invoke(app, ["report", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in (out / "report.md").read_text().splitlines()]
    assert "4 cells finished. Seeds: 0." in lines
    assert (
        "| llm-streamline-layer | 0.1 | **50.0 ±10.8** | **100.0 ±14.1** | a | "
        "**96.0 ±3.6** | 71.0 | 10.5 | 70.0 ±15.3 | 30.0 ±15.3 |"
    ) in lines
    assert "| piqa | lm-eval | acc | 10 | validation (packaged) | 0 | 1.0 |" in lines
    assert (  # which are now auto unless given
        "streamline-bench --suite smoke --dtype float32 # and in run.json: training.normalize, "
        "training.learning_rate, training.final_learning_rate, training.warmup"
    ) in lines
    assert "llm-streamline-layer" in loss_curves(out, load(out), [])["smollm2-135m-instruct", 0.1]
    made = {path.name for path in (out / "figures").iterdir()}
    assert {
        "accuracy-smollm2-135m-instruct.svg",
        "loss-smollm2-135m-instruct.svg",
        "cosine-smollm2-135m-instruct.svg",
    } <= made
    plan = json.loads((out / "plans" / f"{LAYER}.json").read_text())
    assert load(out)[3].plan.removed_layers == plan["removed_layers"]
