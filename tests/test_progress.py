from __future__ import annotations

import pytest

from streamline.progress import Silent, clock, part, placed, portions, showing, tell


class _Kept(Silent):
    def __init__(self) -> None:
        self.steps: list[tuple[float, float, str]] = []

    def step(self, done: float, total: float, message: str = "") -> None:
        self.steps.append((done, total, message))


def test_a_method_tells_whoever_is_showing() -> None:
    kept = _Kept()
    tell(1, 2)
    with showing(kept):
        tell(1, 3, "round")
    tell(2, 3)
    assert kept.steps == [(1, 3, "round")]


def test_a_method_that_fails_leaves_nobody_showing() -> None:
    kept = _Kept()
    with pytest.raises(RuntimeError, match="a fault"), showing(kept):
        raise RuntimeError("a fault")
    tell(1, 3)
    assert kept.steps == []


def test_what_is_told_within_a_part_moves_that_part() -> None:
    kept = _Kept()
    with showing(kept):
        with part(2, 4):
            tell(5, 10)
            with part(1, 2):
                tell(1, 2)
        tell(3, 4)
    assert [(done, total) for done, total, _ in kept.steps] == [
        (2, 4),
        (2.5, 4),
        (2.5, 4),
        (2.75, 4),
        (3, 4),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (45, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_portions_follow_one_another_and_nest() -> None:
    assert placed() is None
    first, second = portions([1, 3])
    with first:
        assert placed() == (0.0, 0.25)
    with second:
        inner = portions([0, 0, 0])  # equal where nothing has a weight
        with inner[1]:
            assert placed() == pytest.approx((0.5, 0.75))
        assert placed() == (0.25, 1.0)
    assert placed() is None
