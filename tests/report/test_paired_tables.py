"""Tables of stability and perplexity beside the best, and which rows lead."""

from __future__ import annotations

import numpy as np

from streamline.report.findings.answer import answer
from streamline.report.findings.chance import chance_tables, paired
from streamline.report.findings.rows import rows
from streamline.report.runs import RunFolder
from streamline.results.record_file import load, upsert


def test_stability_and_perplexity_stand_beside_the_best_ones_paired(run_copy):
    records = load(run_copy)
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.6, 20)  # of all models alike
    for record in records:
        value = record.summary.perplexity.get("heldout")
        if value is not None:
            losses = (np.log(value) + hard + rng.normal(0, 0.01, 20)).tolist()
            facts = {"heldout": {"mean_nll_stderr": 0.6 / 20**0.5, "window_nll": losses}}
            extra = {**(record.summary.model_extra or {}), "perplexity_facts": facts}
            summary = record.summary.model_dump() | extra
            upsert(run_copy, record.model_dump(mode="json") | {"summary": summary})
    runs = [RunFolder(path=run_copy, records=load(run_copy))]
    found, notes = paired(runs)
    assert not any(notes.values())
    compared = found["smollm2-135m-instruct", 0.25].paired
    assert set(compared) == {"stability", "perplexity heldout"}
    perplexities = compared["perplexity heldout"]
    order = list(perplexities.values)
    assert [*perplexities.differences] == order[1:] and perplexities.best == order[0]
    assert all(perplexities.apart(name) for name in order[1:])  # the errors alone overlap
    assert len(compared["stability"].values) == len(order)
    tables = {table.title: table for table in chance_tables(found, "smollm2-135m-instruct")}
    table = tables[f"Target 0.25: Perplexity of heldout beside the best, {order[0]}"]
    assert table.rows[0][2] == "best" and table.rows[1][5].endswith(" *")
    assert any(title.startswith("Target 0.1: Stability beside the best, ") for title in tables)
    here = [row for row in rows([r for run in runs for r in run.records], found) if row.done]
    leading = [
        row.method for row in here if row.sparsity == 0.25 and "perplexity heldout" in row.leads
    ]
    assert leading == [order[0]]


def test_of_tasks_scored_in_several_ways_those_alike_are_averaged_and_compared(run_copy):
    for record in load(run_copy):
        if record.status == "ok" and record.tasks:
            (other, result), *alike = record.tasks.items()
            tasks = {name: one.model_dump() for name, one in record.tasks.items()}
            tasks[other] |= {"protocol": "gen"}
            values = [one.value for _, one in alike]
            own = {"accuracy": sum(values) / len(values), "relative_accuracy": 0.5}
            parts = {str(alike[0][1].extra("protocol")): own, "gen": {"accuracy": result.value}}
            summary = {"perplexity": record.summary.perplexity, "by_protocol": parts}
            changed = record.model_dump(mode="json") | {"tasks": tasks, "summary": summary}
            upsert(run_copy, changed)
    records = [one for one in load(run_copy) if one.status == "ok" and one.tasks]
    found, _ = paired([RunFolder(path=run_copy, records=records)])
    n = sum(one.n or 0 for one in list(records[0].tasks.values())[1:])
    assert {row.n for row in found["smollm2-135m-instruct", 0.25].rows} == {n}
    (groups, *_) = chance_tables(found, "smollm2-135m-instruct")
    assert groups.notes[0].startswith(f"{n} questions, the averaged tasks pooled, ")
    here = rows(records, found)
    for row in [row for row in here if len(row.records) == 1]:
        assert row.accuracy is not None and row.accuracy.stderr is not None
        shown = [one.stderr for one in list(row.records[0].tasks.values())[1:]]
        assert np.isclose(row.accuracy.stderr, np.linalg.norm(shown) / len(shown))
    assert answer(here).startswith("At ")
