"""What an evaluation shows, from records alone."""

from __future__ import annotations

from streamline.api.evaluation import Evaluation
from streamline.results.record import Record


def test_a_table_says_which_tasks_are_averaged_where_they_were_scored_in_several_ways() -> None:
    one = {"metric": "acc", "value": 0.5, "n": 4, "stderr": 0.25, "protocol": "lm-eval"}
    tasks = {"gsm8k": one | {"value": 0.1, "protocol": "gen"}, "piqa": one, "arc_easy": one}
    summary = {"by_protocol": {"lm-eval": {"accuracy": 0.5}, "gen": {"accuracy": 0.1}}}
    cell = {"model": "m", "method": "dense", "sparsity": 0.0, "status": "ok", "tasks": tasks}
    record = Record.build(cell | {"summary": summary})
    shown = str(Evaluation({"m": record}, {}, "m", {})).splitlines()
    assert shown[-1] == "Averages are of tasks scored alike, the most there are: piqa, arc_easy."
    assert any(line.startswith("m ") and "50.0 ±17.7" in line for line in shown)
