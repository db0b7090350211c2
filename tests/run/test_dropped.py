"""A trained replacement is held against its own layers dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.run.config import RunConfig
from streamline.run.pipeline import run


def test_a_replacement_worse_than_its_layers_dropped_is_marked(
    tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    bad = {"training": {**config(tmp_path).training.model_dump(), "learning_rate": 30.0}}
    bad["training"] |= {"final_learning_rate": 30.0, "n_tokens": 64, "warmup": 0.0}
    method = "llm-streamline-ffn"
    _, ffn = run(config(tmp_path / "a", methods=method, limit=2, **bad))
    _, start = run(config(tmp_path / "b", methods=f"{method}+residual=true", limit=2, **bad))
    layers = ",".join(map(str, ffn.plan.removed_layers))
    same = config(tmp_path / "c", methods=f"given-layers+remove=[{layers}]", limit=2)
    dense, drop = run(same)

    (text,) = drop.summary.perplexity
    dropped = {"text": text, "perplexity": pytest.approx(drop.summary.perplexity[text], rel=1e-6)}
    assert ffn.notes["dropped"] == start.notes["dropped"] == dropped
    assert "dropped" not in dense.notes and "dropped" not in drop.notes
    for record in (ffn, start):
        is_worse = record.summary.perplexity[text] > drop.summary.perplexity[text]
        assert ("worse" in record.notes) == is_worse
    assert "perplexity" in ffn.notes["worse"] and "+init=linear" in ffn.notes["worse"]
    assert "worse" not in start.notes, "it starts at the dropped layers, and the best is kept"
    (training,) = ffn.notes["training"].values()
    assert training["precision"] == dict.fromkeys(("teacher", "weights", "compute"), "float32")
    assert " !" in (tmp_path / "a" / "report.md").read_text()
    assert "worse than its layers dropped" in (tmp_path / "a" / "report.html").read_text()
