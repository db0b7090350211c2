"""The streaming row: a limit that holds, results compared, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamline.benchmarks.speed import streaming
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.errors import StreamlineError
from streamline.streaming.weights import WeightSource

SIZE = {"hidden": 64, "layers": 4, "vocabulary": 300, "limit_mib": 0}


def found(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    streaming.make_model(folder, 64, 4, 300)
    return streaming.work(folder, streamed=True), streaming.work(folder, streamed=False)


def test_the_two_ways_agree(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    ours, theirs = found(folder)
    assert streaming._compare(ours, theirs)["max_difference"] < 1e-4
    assert ours["most_reads_of_a_layer"] == 2
    with WeightSource(folder) as source:
        sizes = {name: source[name].stop - source[name].start for name in source}
    head = sizes["lm_head.weight"] + sizes["model.norm.weight"]
    assert ours["bytes_read"] == 2 * sum(sizes.values()) - head
    assert len(ours["removed"]) == 1 and 0 < ours["saved_bytes"] < sum(sizes.values())
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "scratch"}
    theirs["loglikelihood"][1][3] += 0.01
    with pytest.raises(Disagreement, match="log-probabilities differ"):
        streaming._compare(ours, theirs)


def test_the_row_puts_the_processes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def process(folder: Path, kind: str, limit: int | None) -> dict[str, Any]:
        limits.append((kind, limit))
        return streaming.work(folder, streamed=kind == "streamed")

    monkeypatch.setattr(streaming, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(streaming, "_process", process)
    monkeypatch.setattr(streaming, "_fails", lambda folder, limit: "no memory")
    monkeypatch.setitem(streaming.SIZES, "quick", SIZE)
    outcome = streaming.run(Options(size="quick"))
    assert limits == [("streamed", 0), ("whole", None)]
    assert outcome.ratio is not None and outcome.to_json()["facts"]["weights_bytes"] > 0
    assert "no layer was read more than 2 times" in " ".join(outcome.notes)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(streaming.SIZES, "quick", SIZE | {"limit_mib": 1 << 20})
    with pytest.raises(StreamlineError, match="holds the model"):
        streaming.run(Options(size="quick"))
