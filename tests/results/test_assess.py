from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from streamline.errors import ConfigError
from streamline.results.assess import CellResult, assess
from streamline.results.readers.sample_rows import from_samples


def _result(right: dict[str, list[bool]], protocols: dict[str, str]) -> CellResult:
    rows = [
        {
            "task": task,
            "doc_id": doc,
            "doc_hash": f"{task}{doc}",
            "option": option,
            "loglikelihood": -1.0 - option - doc,
            "n_tokens": 2,
            "n_bytes": 4,
            "gold": 0,
            "chosen": int(not good),
            "correct": good,
            "metric": "acc",
        }
        for task, answers in right.items()
        for doc, good in enumerate(answers)
        for option in range(2)
    ]
    tasks = {
        task: {
            "metric": "acc",
            "value": float(np.mean(answers)),
            "subtasks": [task],
            "protocol": protocols[task],
        }
        for task, answers in right.items()
    }
    return CellResult(tasks, pd.DataFrame(rows))


BEFORE = {"a": [True, True, True, True], "b": [True, True, False, False]}
AFTER = {"a": [True, True, True, False], "b": [True, False, False, False]}


def test_tasks_of_one_protocol_are_averaged():
    same = dict.fromkeys("ab", "lm-eval")
    summary = assess(_result(AFTER, same), _result(BEFORE, same)).summary
    assert summary["accuracy"] == pytest.approx((0.75 + 0.25) / 2)
    assert summary["relative_accuracy"] == pytest.approx(0.5 / 0.75)
    assert summary["agreement"] == pytest.approx(0.75)
    assert "by_protocol" not in summary


def test_nothing_is_averaged_over_two_protocols():
    two = {"a": "lm-eval", "b": "opencompass-ppl"}
    summary = assess(_result(AFTER, two), _result(BEFORE, two)).summary
    for name in ("accuracy", "relative_accuracy", "stability", "agreement"):
        assert summary[name] is None
    parts = summary["by_protocol"]
    assert parts["lm-eval"]["accuracy"] == 0.75
    assert parts["opencompass-ppl"]["relative_accuracy"] == pytest.approx(0.5)
    assert parts["opencompass-ppl"]["agreement"] == 0.75


def test_a_task_that_the_dense_model_lacks_is_refused():
    same = dict.fromkeys("ab", "lm-eval")
    dense = _result(BEFORE, same)
    del dense.tasks["b"]
    with pytest.raises(ConfigError, match="b is on one only"):
        assess(_result(AFTER, same), dense)


def test_a_row_of_several_tasks_of_any_name_is_their_mean():
    """A group of lm-eval's, whose tasks no name tells to be its subjects."""
    whole = {"arc": {"metric": "acc", "value": 0.5, "subtasks": ["a", "b"], "protocol": "lm-eval"}}
    before, after = (
        CellResult(whole, _result(right, dict.fromkeys("ab", "lm-eval")).samples)
        for right in (BEFORE, AFTER)
    )
    row = assess(after, before).tasks["arc"]
    assert row["counts"] == {"both_right": 4, "lost": 2, "gained": 0, "both_wrong": 2}
    assert row["agreement"] == pytest.approx((0.75 + 0.75) / 2)


def test_what_has_no_right_answers_is_in_no_average():
    same = dict.fromkeys("ab", "lm-eval")
    results = []
    for right, bits in ((AFTER, 2.5), (BEFORE, 1.5)):
        result = _result(right, same)
        told = pd.DataFrame(
            {"task": "told", "doc_id": 0, "doc_hash": "d", "option": 0, "loglikelihood": -bits,
             "n_tokens": 1, "n_bytes": 1, "gold": 0, "chosen": 0, "correct": False,
             "metric": "bits_per_byte"}, index=[0],
        )  # fmt: skip
        facts = {"metric": "bits_per_byte", "value": bits, "subtasks": ["told"], "protocol": "bpb"}
        tasks = result.tasks | {"told": facts}
        results.append(CellResult(tasks, pd.concat([result.samples, told], ignore_index=True)))
    found = assess(*results)
    alone = assess(_result(AFTER, same), _result(BEFORE, same))
    assert found.summary == alone.summary
    assert found.tasks["told"]["value"] == 2.5 and "counts" not in found.tasks["told"]
    assert set(from_samples(results[0].samples)) == {"a", "b"}
