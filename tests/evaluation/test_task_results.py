from __future__ import annotations

import pytest

from streamline.evaluation.task_results import combine
from streamline.evaluation.tasks.catalogue import TaskEntry


def test_subjects_are_averaged_without_weights() -> None:
    blocks = [
        {"metric": "acc", "value": v, "stderr": s, "n": n, "version": 1}
        for v, s, n in ((0.5, 0.03, 10), (1.0, 0.04, 30))
    ]
    row = TaskEntry(name="mmlu", tasks=("a", "b"), protocol="lm-eval", metric="acc")
    both = combine(row, blocks)
    assert both["value"] == 0.75 and both["n"] == 40 and both["subjects"] == 2
    assert both["stderr"] == pytest.approx(0.025)
    single = [block | {"stderr": None, "n": 1} for block in blocks]  # one question a subject
    assert combine(row, single)["stderr"] == pytest.approx(0.25)  # of their spread: 0.5 / 2
