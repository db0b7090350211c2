"""Strict comparison and paired timing; no time is judged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import Disagreement, Outcome, Race


def test_close_numbers_pass_and_others_do_not() -> None:
    assert common.require_close("x", [1.0, 2.0], [1.0, 2.0005], 1e-3) == pytest.approx(5e-4)
    with pytest.raises(Disagreement, match=r"x differ by 0\.002 at 1 .* no time is reported"):
        common.require_close("x", [1.0, 2.0], [1.0, 2.002], 1e-3)
    with pytest.raises(Disagreement, match="x differ by nan at 0"):
        common.require_close("x", [math.nan, 2.0], [1.0, 2.0], 1e-3)
    with pytest.raises(Disagreement, match="counts of x differ"):
        common.require_close("x", [1.0], [1.0, 2.0], 1e-3)
    assert common.require_close("x", [1000.1], [1000.0], 1e-3, relative=True) < 1e-3


def test_unequal_things_are_named() -> None:
    common.require_equal("picks", [1, 2], [1, 2])
    with pytest.raises(Disagreement, match="picks differ .at 1: ours 2, theirs 3"):
        common.require_equal("picks", [1, 2], [1, 3])


def test_a_disagreement_leaves_no_times() -> None:
    def compare(ours: Any, theirs: Any) -> dict[str, Any]:
        common.require_equal("results", ours, theirs)
        return {"seen": ours}

    races = common.contest(2, lambda i: i, lambda i: i, compare)
    assert [(set(race.wall_s), race.facts["seen"]) for race in races] == [
        ({"ours", "theirs"}, i) for i in range(2)
    ]
    with pytest.raises(Disagreement, match="results differ"):
        common.contest(2, lambda i: i, lambda i: 1, compare)


def test_sides_take_turns_to_be_first() -> None:
    order: list[str] = []
    common.contest(
        3, lambda i: order.append("ours"), lambda i: order.append("theirs"), lambda a, b: {}
    )
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux alone can tell")
def test_peak_memory_of_each_side() -> None:
    for race in common.contest(
        2, lambda i: len(bytearray(2**22)), lambda i: len(bytearray(2**26)), lambda a, b: {}
    ):
        assert (race.peak_bytes["theirs"] or 0) > 2**25 > (race.peak_bytes["ours"] or 0)


def test_the_ratio_is_the_median_of_pairs() -> None:
    races = [
        Race(wall_s={"ours": 1.0, "theirs": t}, cpu_s={"ours": 2.0, "theirs": t}, peak_bytes={},
             facts={})
        for t in (3.0, 9.0, 4.0)
    ]  # fmt: skip
    outcome = Outcome(name="x", work="w", against="a", races=races)
    assert outcome.ratio() == 4 and outcome.ratio("cpu") == 2
    assert Outcome(name="x", work="w", against="a").ratio() is None
