from __future__ import annotations

import pytest

from streamline.errors import ConfigError
from streamline.results.averages import (
    average,
    averaged_tasks,
    averages_of,
    collapsed_tasks,
    group_of,
    in_averages,
    relative_accuracy,
)
from streamline.results.record import Record


@pytest.mark.parametrize(
    ("task", "group"),
    [
        ("lukaemon_mmlu_anatomy", "mmlu"),
        ("cmmlu-agronomy", "cmmlu"),
        ("streamline_cmmlu_agronomy", "streamline_cmmlu"),
        ("mmlu_professional_law", "mmlu"),
        ("mmlu_prehistory", "mmlu"),
        ("mmlu_pro_law", None),
        ("mmlu_law", None),
        ("global_mmlu_anatomy", None),
        ("my_mmlu_anatomy", None),
        ("mmlu_anatomy_generative", None),
        ("cmmlu-anatomy", "cmmlu"),
        ("cmmlu-econometrics", None),
        ("mmlu", None),
        ("piqa", None),
    ],
)
def test_subjects_belong_to_their_benchmark(task, group):
    assert group_of(task) == group


def test_average_counts_a_benchmark_once_and_needs_every_task():
    values = {"mmlu_anatomy": 0.2, "mmlu_virology": 0.4, "piqa": 0.7}
    assert average(values) == pytest.approx(0.5)
    assert average({**values, "boolq": None}) is None
    assert average({}) is None


def test_relative_accuracy_is_the_ratio_of_averages():
    # 40.3 / 49.2 as printed: 81.9, while the mean of the two ratios would be another number.
    assert relative_accuracy({"a": 0.30, "b": 0.506}, {"a": 0.40, "b": 0.584}) == pytest.approx(
        0.403 / 0.492
    )
    assert relative_accuracy({"a": None}, {"a": 0.5}) is None
    with pytest.raises(ConfigError, match="b is on one only"):
        relative_accuracy({"a": 0.1}, {"a": 0.1, "b": 0.2})


def test_a_record_s_subjects_become_one_task():
    facts = {"metric": "acc", "version": 1, "protocol": "lm-eval"}
    law = {"value": 0.2, "n": 10, "agreement": 0.5, "counts": {"lost": 1, "gained": 2}}
    art = {"value": 0.6, "n": 30, "agreement": 0.9, "counts": {"lost": 3, "gained": None}}
    tasks = {"mmlu_anatomy": facts | law, "piqa": facts | law, "mmlu_virology": facts | art}
    cell = {"model": "m", "method": "dense", "sparsity": 0, "status": "ok"}
    record = Record.build(cell | {"tasks": tasks})
    found = collapsed_tasks(record)
    assert list(found) == ["mmlu", "piqa"]
    assert found["piqa"] is record.tasks["piqa"]
    mmlu = found["mmlu"]
    assert (mmlu.value, mmlu.n, mmlu.stderr) == (pytest.approx(0.4), 40, None)
    assert mmlu.extra("counts") == {"lost": 4, "gained": None}
    assert (mmlu.extra("subjects"), mmlu.extra("protocol")) == (2, "lm-eval")
    assert mmlu.extra("agreement") == pytest.approx(0.7)


def test_where_tasks_are_scored_in_several_ways_the_most_alike_are_averaged():
    alike = {"metric": "acc", "value": 0.5, "n": 4, "protocol": "lm-eval"}
    tasks = {
        "c3": alike | {"protocol": "opencompass-ppl"},
        "piqa": alike,
        "arc_easy": alike,
        "gsm8k_bpb": {"metric": "bits_per_byte", "value": 3.0, "n": 4, "protocol": "bpb"},
        "mmlu_anatomy": alike | {"protocol": "opencompass-ppl"},
        "mmlu_virology": alike | {"protocol": "opencompass-ppl"},
    }
    parts = {
        "lm-eval": {"accuracy": 0.6, "relative_accuracy": 0.9, "stability": 0.7, "agreement": 0.8},
        "opencompass-ppl": {"accuracy": 0.1},
    }
    cell = {"model": "m", "method": "a", "sparsity": 0.25, "status": "ok", "tasks": tasks}
    summary = {"perplexity": {"heldout": 9.0}, "by_protocol": parts}
    one = Record.build(cell | {"summary": summary})
    # Two of each way, the subjects being one task: in whatever order they were asked.
    assert list(averaged_tasks(one)) == ["piqa", "arc_easy"]
    other = Record.build(cell | {"summary": summary, "tasks": dict(reversed(tasks.items()))})
    assert list(averaged_tasks(other)) == ["arc_easy", "piqa"]
    fewer = {name: task for name, task in tasks.items() if name != "arc_easy"}
    one = Record.build(cell | {"summary": summary, "tasks": fewer})
    assert list(averaged_tasks(one)) == ["c3", "mmlu"] and averages_of(one).accuracy == 0.1
    del tasks["mmlu_anatomy"], tasks["mmlu_virology"]
    one = Record.build(cell | {"summary": summary})
    assert list(averaged_tasks(one)) == ["piqa", "arc_easy"]
    found = averages_of(one)
    assert (found.accuracy, found.stability, found.extra("agreement")) == (0.6, 0.7, 0.8)
    assert found.perplexity == {"heldout": 9.0}
    asked = [task for task in tasks if in_averages(one)(task)]
    assert asked == ["piqa", "arc_easy", "gsm8k_bpb"]
    assert averages_of(Record.build(cell)) == Record.build(cell).summary


def test_what_could_not_be_asked_is_in_no_average():
    there = {"metric": "acc", "value": 0.5, "stderr": 0.03, "n": 4, "protocol": "lm-eval"}
    absent = {"metric": "acc", "value": None, "protocol": "opencompass-ppl"}
    tasks = {"piqa": there, "mmlu_anatomy": there}
    tasks |= {"mmlu_virology": absent | {"protocol": "lm-eval"}}
    tasks |= {"c3": absent, "race": absent, "chid": absent}
    cell = {"model": "m", "method": "a", "sparsity": 0.25, "status": "ok", "tasks": tasks}
    one = Record.build(cell | {"summary": {"accuracy": 0.5}})
    assert list(averaged_tasks(one)) == ["piqa", "mmlu"]
    assert [result.stderr for result in averaged_tasks(one).values()] == [0.03, 0.03]
    assert in_averages(one)("piqa") and not in_averages(one)("c3")
    # Without a value, but asked: its average is not that of another way.
    tasks |= {"c3": absent | {"n": 4}, "race": absent | {"n": 4}, "chid": absent | {"n": 4}}
    parts = {"lm-eval": {"accuracy": 0.5}, "opencompass-ppl": {"accuracy": None}}
    one = Record.build(cell | {"tasks": tasks, "summary": {"by_protocol": parts}})
    assert list(averaged_tasks(one)) == ["c3", "race", "chid"]
    assert averages_of(one).accuracy is None


def test_answers_of_a_row_of_several_tasks_are_averaged_as_the_row():
    rows = {
        "streamline_c3": {"protocol": "opencompass-ppl", "subtasks": ["c3_d", "c3_m"]},
        "race": {"protocol": "lm-eval", "subtasks": ["race_high", "race_middle"]},
        "piqa": {"protocol": "lm-eval"},
    }
    tasks = {name: {"metric": "acc", "value": 0.5, "n": 4, **row} for name, row in rows.items()}
    cell = {"model": "m", "method": "a", "sparsity": 0.25, "status": "ok", "tasks": tasks}
    asked = in_averages(Record.build(cell))
    answered = ["c3_d", "c3_m", "race_high", "race_middle", "piqa"]
    assert [task for task in answered if asked(task)] == answered[2:]
