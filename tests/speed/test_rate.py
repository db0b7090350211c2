"""Useful operations and the rate of products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.benchmarks.speed import rate, report
from streamline.benchmarks.speed.common import Options
from streamline.engine.decoder import Decoder
from streamline.evaluation.scoring.packing import Request, pack
from streamline.testing.models import tiny_config


def test_useful_operations_count_each_token_once() -> None:
    requests = [
        Request("a", 0, 0, (1, 2, 3), (4, 5)),
        Request("a", 0, 1, (1, 2, 3), (4, 6)),
        Request("a", 1, 0, (1, 9), (9,)),
        Request("b", 0, 0, (1, 2), (3,)),
    ]
    # a: 1 2 3 4 and 9 (its 1 is there already); b: 1 2.
    assert rate.distinct(requests) == (7, 10 + 2 + 3, 4)
    batches = pack(requests, batch_tokens=10_000)
    assert sum(batch.n_tokens for batch in batches) == 7
    config = tiny_config("llama", n_layers=2)
    found = rate.useful_operations(Decoder.from_config(config), requests)
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64
    assert found["linear"] == 2 * 7 * 2 * layer
    assert found["attention"] == 4 * 32 * 15 * 2
    assert found["head"] == 2 * 32 * config.vocab_size * 4


def test_rate_row(
    options: Options, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny(rate, n_layers=2)
    monkeypatch.setattr(rate, "_SIZES", ((64, 32, 32),))
    measure = rate.matrix_rate
    monkeypatch.setattr(rate, "matrix_rate", lambda dtype: measure(dtype, seconds=0.005))
    outcome = rate.run(options)
    assert outcome.value is not None and outcome.value > 0 and outcome.ratio is None
    assert outcome.facts["profile"] and outcome.facts["bf16"]["ratio"] > 0
    assert [run["dtype"] for run in outcome.facts["runs"]] == ["float32"] * 2 + ["bfloat16"] * 2
    report.save(outcome, tmp_path, "quick")
    text = (tmp_path / "README.md").read_text()
    assert text.count(" GFLOP/s; in processor time ") == 4
    assert "| rate, bf16 | the same, ours in bfloat16 | the fastest measured bfloat16 prod" in text
