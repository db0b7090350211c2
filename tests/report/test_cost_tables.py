from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_run import made_efficiency

from streamline.report.cost_tables import (
    cost_table,
    efficiency_frame,
    efficiency_table,
    serving_table,
)
from streamline.report.latex import latex
from streamline.report.render import markdown, terminal
from streamline.report.runs import RunFolder
from streamline.report.sections import gather, run_sections
from streamline.results.record import Record
from streamline.results.record_file import load


def record(method, removed=0.25, **changes):
    cell = {"model": "m", "method": method, "sparsity": 0.0 if method == "dense" else 0.25}
    values = {"efficiency": made_efficiency(removed), "status": "ok"}
    return Record.build(cell | values | changes)


def column(table, head):
    index = [" ".join(name.split()) for name in table.columns].index(head)
    return {row[0]: row[index] for row in table.rows}


def test_speeds_stand_as_times_of_dense_with_their_quartiles():
    table = efficiency_table([record("dense", 0.0), record("shortgpt")])
    ratio = made_efficiency(0.25)["decode"][0]["ratio"]
    shown = f"{ratio['median']:.2f} ({ratio['lower']:.2f}-{ratio['upper']:.2f})"
    assert column(table, "decode x, batch 1") == {"dense": "1.00 (0.97-1.04)", "shortgpt": shown}
    assert column(table, "FLOPs %") == {"dense": "100.0", "shortgpt": "75.0"}
    assert "plain decoding with a cache that grows; prompts of 128 tokens" in table.notes[0]


def test_notes_say_what_was_shared_what_failed_and_why_a_ratio_is_odd():
    records = [
        record("a", efficiency=made_efficiency(0.25, note="the head stays | *really*")),
        record("b", efficiency=made_efficiency(0.25, measured_on="a@0.25")),
        record("c", efficiency={"reason": "the model is streamed"}),
        record("d", efficiency=None),
    ]
    table = efficiency_table(records)
    assert [row[0] for row in table.rows] == ["a", "b", "c"]
    assert column(table, "prefill x, batch 8")["c"] == "-"
    assert table.notes[1:] == (
        "a@0.25: the head stays | *really*",
        "b@0.25: of the same shape as a@0.25, and measured as that",
        "c@0.25: the model is streamed",
    )
    for render in (terminal, markdown, latex):
        assert "b@0.25" in render(table)


def test_without_a_measurement_there_is_no_table():
    assert efficiency_table([record("a", efficiency=None)]).rows == ()
    runs = [RunFolder(path=Path("out"), records=[record("a", efficiency=None)])]
    sections = run_sections(gather(runs))
    assert "efficiency-m" not in {table.name for one in sections for table in one.tables}


def test_where_a_variant_can_be_served_stands_in_the_report():
    plain = ["transformers", "vLLM", "llama.cpp (--to gguf)"]
    records = [
        record("dense", 0.0, serves_in=plain),
        record("shortgpt", serves_in=plain),
        record("llm-streamline-ffn", serves_in=["transformers (trust_remote_code)"]),
        record("old"),
    ]
    table = serving_table(records)
    assert column(table, "serves in") == {
        "shortgpt": "transformers, vLLM, llama.cpp (--to gguf)",
        "llm-streamline-ffn": "transformers (trust_remote_code)",
    }
    sections = run_sections(gather([RunFolder(path=Path("out"), records=records)]))
    assert "serving-m" in {one.name for section in sections for one in section.tables}
    assert serving_table([record("old")]).rows == ()


def cost(**changes):
    return {
        "calibrate_tokens": 4096, "calibrate_s": 3.0, "calibrate_with": 2, "train_tokens": 1000,
        "train_steps": 10, "train_flops": 2e12, "train_s": 5.0, "train_with": 1,
        "train_peak_memory_bytes": 2**30, **changes,
    }  # fmt: skip


def test_costs_in_which_no_two_cells_differ_leave_the_table():
    records = [
        record("dense", 0.0),
        record("a", cost=cost()),
        record("b", cost=cost(train_steps=20, calibrate_s=9.0)),
    ]
    table = cost_table(records)
    assert [" ".join(name.split()) for name in table.columns] == [
        "method",
        "target",
        "training steps",
    ]
    assert cost_table(records[:2]).rows == ()


def test_seconds_stand_only_where_a_cell_had_them_to_itself():
    records = [record("a", cost=cost()), record("b", cost=cost(train_with=2, train_s=7.0))]
    table = cost_table(records)
    assert column(table, "training s") == {"a": "5.0", "b": "-"}
    assert column(table, "training GiB") == {"a": "1.00", "b": "-"}
    assert "7.0" not in str(table.rows)


def test_the_frame_holds_what_was_measured(run_folder):
    frame = efficiency_frame(load(run_folder))
    assert len(frame) == 4 * sum(one.efficiency is not None for one in load(run_folder))
    row = frame[(frame.method == "shortgpt") & (frame.sparsity == 0.25)].iloc[0]
    expected = next(r for r in load(run_folder) if r.method == row.method and r.sparsity == 0.25)
    speed = expected.efficiency.speed(row.phase, row.batch)
    assert row.ratio == pytest.approx(speed.ratio.median)
    assert row.ratio_lower == speed.ratio.lower and row.dense_parameters > row.parameters
    none = efficiency_frame([record("c", efficiency={"reason": "streamed"})])
    assert none.reason.tolist() == ["streamed"] and none.ratio.isna().all()
