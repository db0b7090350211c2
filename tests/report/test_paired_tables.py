"""Tables of stability and perplexity beside the best, and which rows lead."""

from __future__ import annotations

import numpy as np

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
