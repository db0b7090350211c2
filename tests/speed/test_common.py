"""Strict comparison and paired timing; no time is judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.benchmarks.speed import common, peak, spans
from streamline.benchmarks.speed.common import Disagreement, Outcome, Race
from streamline.errors import StreamlineError


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
    def compare(results: dict[str, Any]) -> dict[str, Any]:
        common.require_equal("results", results["ours"], results["theirs"])
        return {}

    races = common.contest(2, {"ours": lambda i: i, "theirs": lambda i: i}, compare)
    assert [set(race.wall_s) for race in races] == [{"ours", "theirs"}] * 2
    with pytest.raises(Disagreement, match="results differ"):
        common.contest(2, {"ours": lambda i: i, "theirs": lambda i: 1}, compare)


def test_contestants_take_turns_to_be_first() -> None:
    order: list[str] = []
    runs = {name: lambda i, name=name: order.append(name) for name in ("ours", "theirs")}
    common.contest(3, runs, lambda results: {})
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux alone can tell")
def test_peak_memory_of_each_contestant() -> None:
    sizes = {"ours": 2**22, "theirs": 2**26}
    runs = {name: lambda i, size=size: len(bytearray(size)) for name, size in sizes.items()}
    for race in common.contest(2, runs, lambda results: {}):
        assert (race.peak_bytes["theirs"] or 0) > 2**25 > (race.peak_bytes["ours"] or 0)


def test_the_ratio_is_the_median_of_pairs() -> None:
    races = [Race({"ours": 1.0, "theirs": t}, {"ours": 2.0, "theirs": t}, {}) for t in (3, 9, 4)]
    outcome = Outcome(name="x", work="w", against="a", target=2.0, races=races)
    assert outcome.ratio == 4 and outcome.ratio_of("ours", "cpu") == 2
    assert Outcome(name="x", work="w", against="a", target=2.0).ratio is None


def test_peak_memory_of_a_process(tiny: Callable[..., Any]) -> None:
    tiny(spans, n_layers=2)
    found = peak.main("spans", "measure_ours", '["tiny", 1, 32]')
    assert 10 * 2**20 < found["before"] <= found["peak"]
    with pytest.raises(StreamlineError, match="memory of peak.nothing.* failed: AttributeError"):
        common.peak_bytes("peak", "nothing")
