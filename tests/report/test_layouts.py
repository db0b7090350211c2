from __future__ import annotations

import pytest

from streamline.errors import ConfigError
from streamline.report.layouts import layout_table
from streamline.results.record import Record

TASKS = {
    "PIQA": "piqa",
    "WinoGrande": "winogrande",
    "HellaSwag": "hellaswag",
    "ARC-easy": "arc_easy",
    "ARC-challenge": "arc_challenge",
    "OpenBookQA": "openbookqa",
}


def cell(method, sparsity, level, model="opt-1.3b", removed=None):
    return Record.build(
        {
            "model": model,
            "method": method,
            "sparsity": sparsity,
            "status": "ok",
            "parameters": {"removed_fraction": sparsity if removed is None else removed},
            "tasks": {task: {"metric": "acc", "value": level} for task in TASKS.values()},
        }
    )


LAYOUT = {"published": "v1_table3_opt", "methods": {"Ours": "llm-streamline-ffn"}}


def by_head(table, row):
    return dict(zip(table.columns, row, strict=True))


def test_measured_rows_stand_below_the_printed_ones_with_their_difference():
    records = [cell("dense", 0.0, 0.5), cell("llm-streamline-ffn", 0.18, 0.45, removed=0.1786)]
    table = layout_table(records, LAYOUT)
    rows = [by_head(table, row) for row in table.rows]
    place = next(i for i, row in enumerate(rows) if row["method"] == "Ours")
    printed, measured, difference = rows[place : place + 3]
    assert [row["values"] for row in rows[place : place + 3]] == [
        "published",
        "measured",
        "difference",
    ]
    assert (printed["PIQA"], measured["PIQA"], difference["PIQA"]) == ("68.8", "45.0", "-23.8")
    assert (printed["ratio"], measured["ratio"], difference["ratio"]) == ("18.1", "17.86", "-0.24")
    assert (measured["Ave."], measured["Per."], difference["Per."]) == ("45.0", "90.0", "-2.3")
    assert printed["OpenBookQA"] == "23.3"
    assert any("only multiples of 0.2 are possible" in note for note in table.notes)


def test_printed_ratios_stand_beside_what_the_configs_give():
    table = layout_table([cell("dense", 0.0, 0.5)], LAYOUT)
    rows = [by_head(table, row) for row in table.rows if row[2] == "published"]
    shown = {
        (row["LLM"], row["method"], row["ratio"]): (
            row["recomputed\nas the paper"],
            row["recomputed\nexact"],
        )
        for row in rows
    }
    assert shown["OPT-1.3B", "Ours", "18.1"] == ("18.07", "17.86")
    assert shown["OPT-1.3B", "SliceGPT", "18.1"] == ("-", "-")
    assert shown["OPT-1.3B", "Dense", "0.0"] == ("-", "-")
    assert by_head(table, table.rows[1])["recomputed\nexact"] == "-"
    reason = "Ratio of OPT-2.7B SliceGPT: printed with the ratio of Ours in its block;"
    assert sum(note.startswith(reason) for note in table.notes) == 1
    none = layout_table([], {"published": "v1_table7_domains"})
    assert not any("Recomputed" in note for note in none.notes)


def test_a_printed_row_without_a_cell_stands_alone():
    table = layout_table([cell("dense", 0.0, 0.5)], LAYOUT)
    kinds = [row[2] for row in table.rows if row[:2] == ("OPT-1.3B", "SliceGPT")]
    assert kinds == ["published"] * 3
    far = layout_table([cell("llm-streamline-ffn", 0.5, 0.4)], LAYOUT)
    assert all(row[2] == "published" for row in far.rows)


def test_another_model_has_rows_of_its_own_without_a_difference():
    records = [
        cell("dense", 0.0, 0.5, "smollm2-135m-instruct"),
        cell("llm-streamline-ffn", 0.25, 0.4, "smollm2-135m-instruct"),
    ]
    table = layout_table(records, LAYOUT)
    assert [row[2] for row in table.rows[-2:]] == ["measured", "measured"]
    last = by_head(table, table.rows[-1])
    assert (last["LLM"], last["method"]) == (
        "smollm2-135m-instruct",
        "llm-streamline-ffn@0.25",
    )
    assert (last["Ave."], last["Per."]) == ("40.0", "80.0")
    assert "difference" not in {row[2] for row in table.rows}
    first = [i for i, row in enumerate(table.rows) if row[1] == "Dense"]  # of its blocks
    assert table.sections == {*first[1:], len(table.rows) - 2}
    assert table.rows[-2][1] == "dense"


def test_an_average_over_fewer_tasks_is_not_shown():
    record = cell("dense", 0.0, 0.5)
    del record.tasks["openbookqa"]
    table = layout_table([record], LAYOUT)
    measured = by_head(table, table.rows[1])
    assert (measured["PIQA"], measured["OpenBookQA"], measured["Ave."]) == ("50.0", "-", "-")
    assert "Not evaluated here: OpenBookQA." in table.notes


def test_the_papers_own_tasks_are_found_and_can_be_named():
    tasks = {
        "streamline_commonsense_qa": {"metric": "acc", "value": 0.6},
        "commonsense_qa": {"metric": "acc", "value": 0.2},
        "streamline_race_high": {"metric": "acc", "value": 0.3},
    }
    record = cell("dense", 0.0, 0.5, "llama2-7b").model_copy(update={"tasks": {}})
    record = Record.build(record.to_json() | {"tasks": tasks})
    table = layout_table([record], {"published": "v1_table1_ppl"})
    row = by_head(table, table.rows[1])
    assert (row["CoQA"], row["Race-H"], row["PIQA"]) == ("60.0", "30.0", "-")
    layout = {"published": "v1_table1_ppl", "columns": {"CoQA": "commonsense_qa"}}
    table = layout_table([record], layout)
    assert by_head(table, table.rows[1])["CoQA"] == "20.0"


def test_malformed_layouts_are_refused():
    with pytest.raises(ConfigError, match="published is required; given are rows"):
        layout_table([], {"rows": []})
