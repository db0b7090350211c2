"""What cells cost, trained together and one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamline.run.config import RunConfig
from streamline.run.pipeline import run

METHODS = "shortgpt,llm-streamline-ffn,llm-streamline-layer"


def test_what_is_trained_one_by_one_has_its_cost_to_itself_and_the_same_numbers(
    config: Callable[..., RunConfig], numbers: Any, tmp_path: Path
) -> None:
    joint = run(config(tmp_path / "joint", methods=METHODS))
    alone = run(config(tmp_path / "alone", methods=METHODS, one_by_one=True))
    assert numbers(joint) == numbers(alone)
    assert [record.key for record in joint] == [record.key for record in alone]
    dense, dropped, *trained = (record.cost for record in joint)
    assert [cost.train_with for cost in trained] == [2, 2]
    assert [record.cost.train_with for record in alone] == [None, None, 1, 1]
    assert dense.calibrate_tokens is None and dropped.calibrate_tokens == 4 * 16
    assert (dropped.train_s, dropped.train_steps, dropped.train_flops) == (None, None, None)
    for cost, record in zip(trained, alone[2:], strict=True):
        own = record.cost
        assert (cost.train_tokens, cost.train_steps) == (own.train_tokens, own.train_steps)
        assert cost.train_steps == (cost.train_tokens or 0) // 64
        assert cost.train_flops == own.train_flops and cost.train_flops
        assert cost.calibrate_flops == own.calibrate_flops == dropped.calibrate_flops
        assert cost.calibrate_peak_memory_bytes is None  # on a CPU
        assert cost.calibrate_with == 1 and cost.peak_memory_bytes is None
    again = run(config(tmp_path / "joint", methods=METHODS))
    assert [record.cost for record in again] == [record.cost for record in joint]


def test_seconds_of_fits_that_were_summed_together_are_said_to_be_a_part(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    dense, *fitted = run(config(tmp_path / "out", methods="replaceme", sparsities=(0.2, 0.4)))
    assert dense.cost.calibrate_with is None
    for record in fitted:
        assert record.cost.calibrate_with == 2 and record.cost.calibrate_flops is None
    (alone,) = run(config(tmp_path / "alone", methods="replaceme"))[1:]
    assert alone.cost.calibrate_with == 1
