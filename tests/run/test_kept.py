"""Runs whose kept files came to harm: what is damaged is named and made again, no number changes.

A run that was killed before its records were written finds whatever lies in its cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES

from streamline.results.record import Record
from streamline.results.samples import read_samples
from streamline.run import model_run
from streamline.run.config import RunConfig
from streamline.run.pipeline import evaluate_model, run

METHODS = "sleb,llm-streamline-ffn"
#: One of each kind of file in the cache of a run.
KINDS = {
    "answers": "answers/*/piqa*.json",
    "rows": "answers/*/piqa*.parquet",
    "perplexity": "answers/*/*-heldout*.json",
    "calibration": "calibration/*/*.safetensors",
    "student": "training/students/*.safetensors",
}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, config: Callable[..., RunConfig]
) -> tuple[Path, list[Record]]:
    """One run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(config(out, methods=METHODS))


def unrecorded(whole: Path, out: Path) -> Path:
    """The same as it was before the records were written."""
    shutil.copytree(whole, out)
    (out / "results.json").unlink()
    shutil.rmtree(out / "samples")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_made_again(whole, tmp_path, kind, config, numbers):
    for damage in ("one bit", "empty"):
        out = unrecorded(whole[0], tmp_path / damage)
        DAMAGES[damage](sorted((out / "cache").glob(KINDS[kind]))[0])
        records = run(config(out, methods=METHODS))
        assert {r.status for r in records} == {"ok"}, [r.reason for r in records]
        assert numbers(records) == numbers(whole[1])


@pytest.mark.parametrize("damage", ["missing", "one bit"])
def test_damaged_rows_of_a_finished_cell_are_written_again(
    whole, tmp_path, damage, config, numbers, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    file = sorted((out / "samples").glob("*--sleb--*.parquet"))[0]
    before = read_samples(file)
    DAMAGES[damage](file)
    again: list[str] = []
    original = model_run.evaluate

    def watched(paths: Any, *args: Any, **options: Any) -> Any:
        again.extend(path.name for path in paths.values())
        return original(paths, *args, **options)

    monkeypatch.setattr(model_run, "evaluate", watched)
    assert numbers(run(config(out, methods=METHODS))) == numbers(whole[1])
    assert again == ["sleb 0.3"]
    assert read_samples(file).equals(before)


def test_the_next_run_sweeps_what_a_killed_one_left(whole, tmp_path, config):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    left = [
        out / ".results.json.0123456789abcdef0123456789abcdef.tmp",
        out / "cache/training/state/.a.safetensors.0123456789abcdef0123456789abcdef.tmp",
    ]
    mine = out / ".notes.tmp"
    for file in (*left, mine):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a part")
    run(config(out, methods=METHODS))
    assert not any(file.exists() for file in left)
    assert mine.exists(), "only what is named as by a writer of this package"


def test_an_evaluation_sweeps_what_a_killed_one_left_beside_its_record(place, tmp_path, config):
    left = [tmp_path / f".{name}.{'0' * 32}.tmp" for name in ("a.json", "a.parquet")]
    other = tmp_path / f".b.json.{'0' * 32}.tmp"
    for file in (*left, other):
        file.write_text("a part")
    evaluate_model(str(place / "model"), out=tmp_path / "a.json", config=config(tmp_path))
    assert not any(file.exists() for file in left) and other.exists()
