"""Trainings that were killed, finished or changed."""

from __future__ import annotations

import json

import pytest

from streamline.training.fit import fit
from streamline.training.student import Student


class Stop(Exception):
    pass


@pytest.mark.parametrize("objective", ["mse", "lm"])
@pytest.mark.parametrize("calls", [2, 6, 10])
def test_killed_and_resumed_equals_uninterrupted(
    decoder, tmp_path, objective, calls, train, validation, student, weights, assert_equal
):
    def students() -> list[Student]:
        return [
            student(decoder, 1, 3, "layer", objective=objective),
            student(decoder, 2, 4, "ffn", objective=objective),
        ]

    whole = students()
    expected = fit(decoder, whole, train, validation, micro_batch=32)
    count = 0

    def die(*_: object) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise Stop

    options = {"directory": tmp_path, "micro_batch": 32, "save_seconds": 0.0}
    with pytest.raises(Stop):
        fit(decoder, students(), train, validation, progress=die, **options)
    resumed, steps = students(), []
    losses = fit(
        decoder, resumed, train, validation, progress=lambda *a: steps.append(a[0]), **options
    )
    assert_equal(weights(*resumed), weights(*whole))
    assert steps[0] > 32 or calls == 2, "the first steps must not be made again"
    for a, b in zip(losses, expected, strict=True):
        assert (a.before, a.after, a.best, a.best_step) == (b.before, b.after, b.best, b.best_step)
        strip = [{**row, "seconds": 0} for row in a.rows]
        assert strip == [{**row, "seconds": 0} for row in b.rows]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_student_saved_later_waits_for_the_other(
    decoder, tmp_path, train, validation, student, weights, assert_equal
):
    def students() -> list[Student]:
        return [student(decoder, 1, 3, "layer"), student(decoder, 2, 4, "ffn")]

    whole = students()
    fit(decoder, whole, train, validation)
    ahead = students()

    def die(done: int, *_: object) -> None:
        if done > 200:
            raise Stop

    with pytest.raises(Stop):
        fit(decoder, ahead[:1], train, validation, directory=tmp_path, progress=die, save_seconds=0)
    late = students()
    fit(decoder, late, train, validation, directory=tmp_path)
    assert_equal(weights(*late), weights(*whole))


def test_finished_training_is_only_loaded(
    decoder, tmp_path, train, validation, student, weights, assert_equal
):
    one = student(decoder, 2, 4)
    (first,) = fit(decoder, [one], train, validation, directory=tmp_path)
    two = student(decoder, 2, 4)
    calls: list[object] = []
    (second,) = fit(
        decoder, [two], train, validation, directory=tmp_path, progress=lambda *a: calls.append(a)
    )
    assert not calls
    assert second == first
    assert_equal(weights(one), weights(two))
    assert not list((tmp_path / "state").glob("*"))


def test_another_recipe_under_the_same_label_starts_afresh(
    decoder, tmp_path, train, validation, student, weights, assert_equal
):
    fit(decoder, [student(decoder, 2, 4)], train, validation, directory=tmp_path, labels=["a"])
    other = student(decoder, 2, 4, learning_rate=1e-3)
    (losses,) = fit(decoder, [other], train, validation, directory=tmp_path, labels=["a"])
    fresh = student(decoder, 2, 4, learning_rate=1e-3)
    fit(decoder, [fresh], train, validation)
    assert_equal(weights(other), weights(fresh))
    lines = (tmp_path / "losses" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == losses.rows
