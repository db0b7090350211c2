"""The sweeps, their lines and their plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamline.benchmarks.speed import questions, scaling
from streamline.engine.decoder import Decoder
from streamline.testing.models import tiny_model, tiny_tokenizer


def test_scaling_row(toy_parts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    monkeypatch.setattr(questions, "task_parts", toy_parts)
    axes = {"questions": (1, 2), "variants": (1, 3), "layers": (2, 6), "tokens": (8, 16)}
    points = scaling.sweep(Decoder(model), tokenizer, axes, 1)
    assert {axis: tuple(p["value"] for p in rows) for axis, rows in points.items()} == axes
    assert scaling.plot(points).count("<svg") == 1
    line = scaling.fitted([{"value": x, "cpu_s": 1 + 2 * x} for x in (1, 2, 5)])
    assert line == pytest.approx({"fixed_s": 1, "per_unit_s": 2})
