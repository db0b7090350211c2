from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.report.findings.chance import chance_tables, paired
from streamline.report.findings.comparison_tables import comparison_tables
from streamline.report.runs import RunFolder
from streamline.results.answers import Answers, align
from streamline.results.assess import CellResult, assess
from streamline.results.compare import POOLED, compare
from streamline.results.predictions import read_cells
from streamline.results.record_file import load, upsert
from streamline.results.samples import samples_path, write_samples
from streamline.results.statistics import holm, mcnemar, seeds_test


def answers(correct, task="t", metric="acc", hashes=None, **asked):
    n = len(correct)
    return Answers(
        task=task,
        ids=tuple(map(str, range(n))),
        hashes=tuple(hashes or [None] * n),
        correct=np.asarray(correct, dtype=bool),
        nll=None,
        nll_name=None,
        metric=metric,
        asked=asked,
    )


def marks(*counts):
    """Two models with (both right, only first, only second, both wrong) questions."""
    both, first, second, neither = counts
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def models():
    dense, pruned = marks(200, 60, 10, 130)
    other = pruned.copy()
    other[:3] = ~other[:3]
    return {
        "dense": {"t": answers(dense)},
        "x": {"t": answers(pruned)},
        "y": {"t": answers(other)},
    }


def test_a_table_of_three_models():
    result = compare(models(), "dense", resamples=999)
    assert result.best == "x"
    assert result.letters == {"dense": "a", "x": "b", "y": "b"}
    row = next(r for r in result.rows if (r.task, r.model, r.against) == ("t", "x", "dense"))
    assert (row.gained, row.lost, row.n) == (10, 60, 400)
    assert row.difference == -0.125
    assert row.low < -0.125 < row.high < 0
    same = [r.p for r in result.rows if r.against == "dense"]
    assert row.p_holm == holm(same)[0]
    against = [r.against for r in result.rows]
    assert against == ["dense"] * 4 + ["x"] * 2
    pooled = compare(models(), "dense", resamples=99, pooled_only=True)
    assert {r.task for r in pooled.rows} == {POOLED}


def test_subjects_are_compared_as_one_task():
    both = {f"mmlu_{s}": answers([True, False], f"mmlu_{s}") for s in ("anatomy", "virology")}
    result = compare({"a": both, "b": both}, "a", resamples=99)
    assert [(row.task, row.n) for row in result.rows] == [("mmlu", 4), (POOLED, 4)]


def test_unequal_evaluations_are_refused_with_the_difference():
    good = answers([True, False], hashes=["a", "b"])
    with pytest.raises(ConfigError, match="piqa is on one side only"):
        compare({"a": {"t": good}, "b": {"t": good, "piqa": good}}, "a")
    with pytest.raises(ConfigError, match=r"1 question \(1\) with another doc_hash"):
        other = answers([True, False], hashes=["a", "c"])
        compare({"a": {"t": good}, "b": {"t": other}}, "a")
    with pytest.raises(ConfigError, match="a and b: Task t was not asked alike: version is 1 in"):
        first, second = ({"t": answers([True, False], version=version)} for version in (1, 2))
        compare({"a": first, "b": second}, "a")
    with pytest.raises(ConfigError, match="scored by acc in a and by acc_norm in b"):
        other = answers([True, False], metric="acc_norm")
        compare({"a": {"t": good}, "b": {"t": other}}, "a")
    with pytest.raises(ConfigError, match="two models or more"):
        compare({"a": {"t": good}}, "a")
    with pytest.raises(ConfigError, match="the reference c"):
        compare({"a": {"t": good}, "b": {"t": good}}, "c")
    with pytest.raises(ConfigError, match="a has no task"):
        compare({"a": {}, "b": {}}, "a")


def test_the_verb_compares_cells_of_a_run(run_folder):
    sources = [f"{run_folder}:dense", f"{run_folder}:shortgpt@0.25", f"{run_folder}:shortgpt@0.1"]
    result = CliRunner().invoke(app, ["compare", *sources, "--no-tasks", "--json"])
    content = json.loads(result.stdout)
    assert content["reference"] == "dense"
    pairs = [{row["model"], row["against"]} for row in content["rows"]]
    assert pairs == [
        {"shortgpt@0.25", "dense"},
        {"shortgpt@0.1", "dense"},
        {"shortgpt@0.25", "shortgpt@0.1"},
    ]
    table = CliRunner().invoke(app, ["compare", *sources, "--no-tasks"])
    assert "Models that share a letter cannot be told apart" in table.stdout
    assert "240 questions" in table.stdout


@pytest.mark.parametrize("verb", ["compare", "stability"])
@pytest.mark.parametrize(
    ("fact", "before", "after"),
    [
        ("version", 1, 2),
        ("shots", 0, 5),
        ("prompts", "the task's own", "chat template"),
        ("protocol", "lm-eval", "bits-per-byte"),
    ],
)
def test_the_verbs_pair_no_cells_whose_tasks_were_asked_differently(
    run_copy, tmp_path, verb, fact, before, after
):
    path = run_copy / "results.json"
    content = json.loads(path.read_text())
    for record, value in zip(content["records"], (before, after), strict=False):
        for task in record["tasks"].values():
            if (fact, value) != ("prompts", before):  # which a record does not say
                task[fact] = value
    del content["checksum"]
    path.write_text(json.dumps(content))
    name = content["records"][1]["method"]
    sources = [f"{run_copy}:dense", f"{run_copy}:{name}@0.1,seed=0"]
    records = load(run_copy)[:2]
    single = [tmp_path / "a.parquet", tmp_path / "b.parquet"]  # as `evaluate` leaves them
    for file, record in zip(single, records, strict=True):
        file.with_suffix(".json").write_text(json.dumps(record.to_json()))
        shutil.copy(samples_path(run_copy, record), file)
    files = [samples_path(run_copy, record) for record in records]
    why = f"Task piqa was not asked alike: {fact} is {before} in the first and {after} in the"
    for pair in (sources, files, single):
        with pytest.raises(ConfigError, match=why):
            CliRunner().invoke(app, [verb, *map(str, pair)], catch_exceptions=False)


def test_a_row_of_several_tasks_says_how_each_was_asked(tmp_path):
    """Of subjects under one name the record's row has the facts, the samples their own names."""
    names = [f"mmlu_{subject}" for subject in ("anatomy", "virology")]
    rows = [
        {
            "task": task,
            "doc_id": doc,
            "doc_hash": f"{doc}",
            "option": option,
            "loglikelihood": -1.0 - option * doc,
            "n_tokens": 1,
            "correct": True,
            "metric": "acc",
        }
        for task in names
        for doc in range(2)
        for option in range(2)
    ]
    facts = {"metric": "acc", "value": 1.0, "n": 4, "subtasks": names}
    results = [
        CellResult({"mmlu": {**facts, "shots": shots}}, pd.DataFrame(rows)) for shots in (0, 5)
    ]
    for method, result in zip(("dense", "x"), results, strict=True):
        cell = {"model": "m", "method": method, "sparsity": 0.0, "status": "ok"}
        record = upsert(tmp_path, {**cell, "tasks": assess(result, results[0]).tasks})
        write_samples(samples_path(tmp_path, record), result.samples)
    dense, pruned = read_cells(tmp_path).values()
    with pytest.raises(ConfigError, match="mmlu_virology was not asked alike: shots is 0 in"):
        align(dense.tasks["mmlu_virology"], pruned.tasks["mmlu_virology"])


def test_a_record_given_twice_is_refused(run_folder):
    source = f"{run_folder}:dense"
    with pytest.raises(ConfigError, match="given twice"):
        CliRunner().invoke(app, ["compare", source, source, source], catch_exceptions=False)


def test_without_tasks_only_the_rows_shown_are_corrected_for(run_folder):
    arguments = ["compare", str(run_folder), "--json"]
    rows = {}
    for more in ([], ["--no-tasks"]):
        result = CliRunner().invoke(app, [*arguments, *more])
        found = json.loads(result.stdout)["rows"]
        rows[bool(more)] = [row for row in found if row["against"] == "dense"]
    shown = rows[True]
    assert {row["task"] for row in shown} == {POOLED}
    assert [row["p_holm"] for row in shown] == holm([row["p"] for row in shown])
    of_all = [row for row in rows[False] if row["task"] == POOLED]
    assert [row["p"] for row in of_all] == [row["p"] for row in shown]


def test_a_pair_has_one_interval_whatever_stands_beside_it(run_folder):
    """In a table of two, of all, in another order, and in the report."""
    shown = {}
    for name, sources in {
        "two": [f"{run_folder}:dense", f"{run_folder}:shortgpt@0.1"],
        "turned": [f"{run_folder}:shortgpt@0.1", f"{run_folder}:dense"],
        "all": [str(run_folder)],
    }.items():
        result = CliRunner().invoke(app, ["compare", *sources, "--json"])
        rows = json.loads(result.stdout)["rows"]
        row = next(
            r
            for r in rows
            if (r["task"], r["model"], r["against"]) == (POOLED, "shortgpt@0.1", "dense")
        )
        shown[name] = (row["low"], row["high"])
    assert len(set(shown.values())) == 1, shown
    found, _ = paired([RunFolder(path=run_folder, records=load(run_folder))])
    tables = chance_tables(found, "smollm2-135m-instruct")
    table = next(t for t in tables if "Target 0.1: Difference in accuracy against dense" in t.title)
    cells = next(row for row in table.rows if row[0] == "shortgpt")
    low, high = shown["two"]
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in cells


def test_seeds_are_compared_together():
    rng = np.random.default_rng(0)
    dense = {"t": answers(rng.random(200) < 0.8)}
    good, bad = ([{"t": answers(rng.random(200) < level)} for level in (0.6, 0.4)] for _ in "ab")
    result = compare({"dense": [dense, dense], "x": good, "y": bad}, "dense", resamples=99)
    row = next(r for r in result.rows if (r.task, r.model, r.against) == (POOLED, "x", "dense"))
    marks = np.stack([one["t"].correct for one in good])
    assert (row.seeds, row.n) == (2, 200)
    assert row.accuracy == pytest.approx(marks.mean())
    assert row.difference == pytest.approx(marks.mean() - dense["t"].correct.mean())
    found = seeds_test(marks, dense["t"].correct[None])
    assert (row.low, row.high, row.p) == pytest.approx((found.low, found.high, found.p))
    assert result.letters == {"dense": "a", "x": "a", "y": "a"}  # seeds that far apart prove little
    note = "Answers of up to 2 seeds"
    assert all(any(note in text for text in table.notes) for table in comparison_tables(result))


def test_seeds_that_answer_alike_are_one():
    once = compare(models(), "dense", resamples=99)
    again = compare({name: [own] * 3 for name, own in models().items()}, "dense", resamples=99)
    assert again == once and {row.seeds for row in again.rows} == {1}


def test_versions_of_every_seed_are_looked_at():
    one, two = (answers([True, False], version=version) for version in (1, 2))
    with pytest.raises(ConfigError, match="version is 1 in the first and 2 in the second"):
        compare({"a": [{"t": one}], "b": [{"t": one}, {"t": two}]}, "a")


def test_a_task_on_which_seeds_agree_is_tested_like_one_of_one_seed():
    few = answers([True] * 3, task="few")
    seeds = [{"few": few, "t": answers(marks)} for marks in ([1, 0, 1, 0], [1, 1, 0, 0])]
    dense = {"few": answers([False] * 3, task="few"), "t": answers([1, 1, 1, 0])}
    rows = {row.task: row for row in compare({"dense": dense, "x": seeds}, "dense").rows}
    assert (rows["few"].p, rows["few"].seeds, rows["few"].gained) == (0.25, 1, 3)
    assert rows["t"].seeds == 2


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_seeds_that_leave_no_variance_prove_no_more_than_their_questions(n):
    """Each question is right with one seed of n: every mean is 1/n, up to rounding."""
    found = seeds_test(np.eye(n, dtype=bool), np.zeros((1, n), dtype=bool))
    assert found.p == mcnemar(np.ones(n, dtype=bool), np.zeros(n, dtype=bool))
    none = seeds_test(np.eye(n, dtype=bool), np.eye(n, dtype=bool)[::-1])
    assert (none.p, none.floor) == (1.0, float("inf"))


def test_a_run_s_seeds_are_one_model_unless_one_is_named(run_folder):
    def names(*sources):
        result = CliRunner().invoke(app, ["compare", *sources, "--no-tasks", "--json"])
        return {row["model"]: row["seeds"] for row in json.loads(result.stdout)["rows"]}

    found = names(str(run_folder))
    assert found["random-layers@0.1"] == 2 and "random-layers@0.1 seed 1" not in found
    apart = [f"{run_folder}:random-layers@0.1,seed={seed}" for seed in (0, 1)]
    assert set(names(f"{run_folder}:dense", *apart).values()) == {1}
    report, _ = paired([RunFolder(path=run_folder, records=load(run_folder))])
    rows = report["smollm2-135m-instruct", 0.1].rows
    assert {row.model: row.seeds for row in rows if row.against == "dense"}["random-layers"] == 2
