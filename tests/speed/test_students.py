"""The row of trained students; a planted difference is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from streamline.benchmarks.speed import students
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.plan import Span


def test_students_row(
    options: Options, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(students)
    few = (Span(1, 3), Span(2, 5))
    monkeypatch.setattr(students, "TOKENS", {"quick": (192, 48)})
    monkeypatch.setattr(students, "_VALIDATION", 96)
    build, how = students.students, students.recipe
    monkeypatch.setattr(students, "students", lambda decoder: build(decoder, few))
    monkeypatch.setattr(
        students,
        "recipe",
        lambda n, length: dataclasses.replace(
            how(n, length), batch_tokens=96, validation_tokens=96
        ),
    )
    outcome = students.run(options)
    facts = outcome.races[0].facts
    assert facts["steps"] == 2 and len(facts["validation"]) == 4
    assert facts["max_relative_difference"] < 1e-4
    assert all(before != after for before, after in facts["validation"])


def test_planted_student_loss_is_found() -> None:
    losses = [[2.0, 1.9, 1.8], [3.0, 2.9, 2.8]]
    students.same({"ours": losses, "theirs": losses})
    with pytest.raises(Disagreement, match="losses of student 1 differ"):
        students.same({"ours": losses, "theirs": [losses[0], [3.0, 2.9, 2.801]]})
