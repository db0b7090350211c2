from __future__ import annotations

import re

import pandas as pd
import pytest

from streamline.errors import UnknownNameError
from streamline.report.cost_tables import seeds_table
from streamline.report.findings.rows import rows
from streamline.report.frames import results_frame, seeds_frame
from streamline.report.latex import latex
from streamline.report.render import blocks, markdown, parquet_bytes, terminal
from streamline.report.table import Table, number, percent
from streamline.report.tables import failures_table, flips_table, results_table, stability_table
from streamline.results.metrics import METRICS, direction
from streamline.results.record import Record
from streamline.results.record_file import load


def record(method="m", sparsity=0.25, status="ok", tasks=None, **changes):
    return Record.build(
        {
            "model": "model_a",
            "method": method,
            "sparsity": sparsity,
            "status": status,
            "tasks": tasks or {},
            **changes,
        }
    )


def results(records):
    return results_table(rows(records, {}))


def column(table, heading):
    place = table.columns.index(heading)
    return [row[place] for row in table.rows]


def test_fractions_are_percent_and_nothing_missing_becomes_a_number():
    assert (percent(0.4567), percent(0.4567, 0.0123)) == ("45.7", "45.7 ±1.2")
    assert (percent(None), number(None)) == ("-", "-")
    assert (percent(0.0), number(0.0)) == ("0.0", "0.00")
    assert (number(29.04), number(1819.4), number(5.473)) == ("29.0", "1,819", "5.47")


def test_a_task_is_shown_under_its_metric_and_two_metrics_never_share_a_column():
    table = results(
        [
            record("a", tasks={"piqa": {"metric": "acc", "value": 0.7, "stderr": 0.01}}),
            record("b", tasks={"piqa": {"metric": "acc_norm", "value": 0.6}}),
            record("c", tasks={"wikitext2": {"metric": "perplexity", "value": 12.345}}),
        ]
    )
    assert column(table, "piqa\nacc") == ["70.0 ±1.0", "-", "-"]
    assert column(table, "piqa\nacc_norm") == ["-", "60.0", "-"]
    assert column(table, "wikitext2\nperplexity") == ["-", "-", "12.3"]


def test_the_way_of_scoring_is_named_and_no_name_stands_for_two_tasks():
    tasks = {
        "piqa": {"metric": "acc", "value": 0.7, "protocol": "lm-eval"},
        "streamline_piqa": {"metric": "acc", "value": 0.6, "protocol": "opencompass-ppl"},
        "streamline_c3": {"metric": "acc", "value": 0.5, "protocol": "opencompass-ppl"},
        "of_another_package": {"metric": "acc", "value": 0.4},
    }
    table = results([record(tasks=tasks)])
    assert table.columns[-4:] == (
        "piqa\nacc",
        "streamline_piqa\nacc",
        "c3\nacc",
        "of_another_package\nacc",
    )
    assert table.notes[1:] == (
        "Scored as by lm-eval: piqa.",
        "Scored as by OpenCompass, mean NLL of the whole text: streamline_piqa, c3.",
        "Averages are of tasks scored alike, the most there are: streamline_piqa, c3.",
    )


def test_failed_and_skipped_cells_are_rows_with_their_reason(run_folder):
    table = results(load(run_folder))
    states = dict(zip(column(table, "method"), column(table, "average\n%"), strict=True))
    assert (states["slicegpt"], states["laco"]) == ("failed", "skipped")
    laco = next(row for row in table.rows if row[0] == "laco")
    assert set(laco[2:]) == {"-", "skipped"}
    assert "slicegpt at 0.25: failed: RuntimeError: SVD did not converge" in table.notes
    lost = failures_table(load(run_folder))
    assert [row[0] for row in lost.rows] == ["slicegpt", "laco"]
    assert lost.rows[0][4:] == ("failed", "RuntimeError: SVD did not converge")


def test_a_sparsity_far_from_the_target_is_flagged():
    far = record(
        parameters={"dense": 100, "pruned": 80, "removed_fraction": 0.2},
        notes={"flag": "asked 0.25, achieved 0.20"},
    )
    table = results([far])
    assert column(table, "removed\n%") == ["20.0 !"]
    assert table.notes[1:] == ("m at 0.25: ! asked 0.25, achieved 0.20",)


def test_rows_are_grouped_by_sparsity_with_dense_first():
    table = results([record("a", 0.25), record("dense", 0.0), record("a", 0.1)])
    assert [row[:2] for row in table.rows] == [("dense", "0"), ("a", "0.1"), ("a", "0.25")]
    assert table.sections == {1, 2}


def test_subjects_are_one_column_of_their_unweighted_mean():
    tasks = {
        "mmlu_anatomy": {"metric": "acc", "value": 0.2, "stderr": 0.03, "n": 10, "stability": 0.5},
        "mmlu_virology": {"metric": "acc", "value": 0.6, "stderr": 0.04, "n": 30, "stability": 0.7},
    }
    assert column(results([record(tasks=tasks)]), "mmlu\nacc") == ["40.0 ±2.5"]
    [row] = results_frame([record(tasks=tasks)]).to_dict("records")
    assert (row["mmlu acc n"], row["mmlu acc stability"]) == (40, pytest.approx(0.6))
    tasks["mmlu_virology"]["value"] = None
    assert column(results([record(tasks=tasks)]), "mmlu\nacc") == ["-"]


def test_the_stability_table_shows_answers_lost_and_gained(run_folder):
    records = load(run_folder)
    table = stability_table(rows(records, {}))
    pruned = next(item for item in records if item.method == "shortgpt")
    counts = pruned.tasks["piqa"].model_extra["counts"]
    row = next(row for row in table.rows if row[0] == "shortgpt")
    share = percent(
        pruned.tasks["piqa"].stability, pruned.tasks["piqa"].model_extra["stability_stderr"]
    )
    first = table.columns.index("agreement") + 1
    assert row[first] == f"{share} (-{counts['lost']}, +{counts['gained']})"


def test_the_table_of_flips_shows_each_kind_with_its_std():
    told = {"metric": "bits_per_byte", "value": 1.0, "n": 10}
    std = {"both_right": 0.0041, "lost": 0.0021, "gained": None, "both_wrong": 0.0035}
    counts = {"both_right": 5, "lost": 3, "gained": 0, "both_wrong": 2}
    facts = {"metric": "acc", "value": 0.5, "n": 10, "counts": counts, "option_std": std}
    table = flips_table(rows([record(tasks={"t": facts, "told": told})], {}))
    assert table.rows == (("m", "0.25", "t", "5 (0.0041)", "3 (0.0021)", "0 (-)", "2 (0.0035)"),)
    assert "order of magnitude" in table.notes[0]
    assert flips_table(rows([record(tasks={"told": told})], {})) is None


def test_several_seeds_give_mean_and_spread(run_folder):
    records = load(run_folder)
    values = [
        item.summary.accuracy
        for item in records
        if item.method == "random-layers" and item.sparsity == 0.25
    ]
    frame = seeds_frame(records)
    row = frame[(frame["sparsity"] == 0.25) & (frame["measure"] == "accuracy")].iloc[0]
    assert (row["seeds"], row["mean"]) == (2, pytest.approx(sum(values) / 2))
    assert row["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert seeds_table(records).rows[1][:3] == ("random-layers", "0.25", "2")


def test_frames_hold_plain_numbers(run_folder):
    records = load(run_folder)
    frame = results_frame(records)
    assert len(frame) == len(records)
    row = frame[frame["method"] == "dense"].iloc[0]
    dense = next(item for item in records if item.method == "dense")
    assert row["hellaswag acc_norm"] == dense.tasks["hellaswag"].value
    averages = ["accuracy", "relative_accuracy", "stability", "perplexity heldout"]
    first = list(frame.columns).index("accuracy")
    assert list(frame.columns[first : first + 8 : 2]) == averages
    assert list(frame.columns[first + 1 : first + 8 : 2]) == [f"{name} stderr" for name in averages]
    assert frame[frame["method"] == "laco"]["accuracy"].isna().all()
    assert frame["cost train_tokens"].max() == 100_000
    pruned = next(item for item in records if item.method == "shortgpt")
    row = frame[(frame["method"] == "shortgpt") & (frame["sparsity"] == pruned.sparsity)].iloc[0]
    assert row["piqa acc lost"] == pruned.tasks["piqa"].model_extra["counts"]["lost"]
    ratio = pruned.efficiency.speed("decode", 8).ratio.median
    assert row["efficiency decode ratio batch 8"] == ratio
    assert row["efficiency checkpoint_bytes"] == pruned.efficiency.checkpoint_bytes


def test_parquet_holds_the_same_cells(run_folder, tmp_path):
    frame = results_frame(load(run_folder))
    file = tmp_path / "results.parquet"
    file.write_bytes(parquet_bytes(frame))
    again = pd.read_parquet(file)
    assert list(again.columns) == list(frame.columns)
    assert again["accuracy"].equals(frame["accuracy"])
    assert again["reason"].dropna().tolist() == frame["reason"].dropna().tolist()


def test_every_line_of_the_terminal_fits_80_columns(run_folder):
    table = results(load(run_folder))
    text = terminal(table)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert text.count("method") == 1  # one block: names wrap, tasks and spare columns are left out
    assert re.search(r"^llm-streamline- .*\nlayer$", text, flags=re.MULTILINE)
    assert "hellaswag\n" not in text.split("± is")[0]
    assert "removed" not in text and "removed" in terminal(table, width=200)


def test_the_best_and_what_ties_with_it_are_bold():
    def cell(method, value, error=0.01):
        task = {"metric": "acc", "value": value, "stderr": error, "n": 2000}
        return record(method, tasks={"piqa": task}, summary={"accuracy": value})

    dense = Record.build({**cell("dense", 0.8).to_json(), "sparsity": 0.0})
    table = results([dense, cell("a", 0.70), cell("b", 0.69), cell("c", 0.60)])
    place = table.columns.index("average\n%")
    assert {row for row, at in table.strong if at == place} == {1, 2}
    assert "**70.0 ±1.0**" in markdown(table) and "**60.0" not in markdown(table)
    assert r"\textbf{69.0 $\pm$1.0}" in latex(table)


def test_a_wide_table_is_cut_into_blocks_that_repeat_the_keys():
    table = Table(
        name="t",
        title="T",
        columns=("method", *(f"task_{i:02}\nacc" for i in range(20))),
        rows=(("m", *("50.0" for _ in range(20))),),
    )
    parts = blocks(table, 80)
    assert len(parts) > 1
    assert all(part.columns[0] == "method" for part in parts)
    assert sum(len(part.columns) - 1 for part in parts) == 20
    assert len(blocks(table, 500)) == 1


SMALL = Table(
    name="t",
    title="50 % of a_b",
    columns=("method", "piqa\nacc"),
    rows=(("a_b|c", "1.0 ±0.5"), ("<d>", "-")),
    sections=frozenset({1}),
    notes=("a|b",),
)


def test_markdown():
    assert markdown(SMALL) == (
        "| method   |   piqa (acc) |\n|:---------|-------------:|\n"
        "| a_b\\|c   |     1.0 ±0.5 |\n| \\<d>     |            - |\n\n- a\\|b\n"
    )


def test_latex_is_escaped_and_uses_booktabs():
    text = latex(SMALL)
    assert r"\usepackage{booktabs,graphicx}" in text.splitlines()[0]
    assert r"\caption{50 \% of a\_b}" in text and r"\label{tab:t}" in text
    assert r"a\_b\textbar{}c & 1.0 $\pm$0.5 \\" in text
    assert r"<d>" not in text and "$<$d$>$ & -- " in text
    assert r"\shortstack{piqa \\ acc}" in text
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 2, 1]
    assert "% a|b" in text


def test_latex_has_a_form_for_one_column_and_one_for_two(run_folder):
    table = results(load(run_folder))
    compact, full = latex(table, "compact"), latex(table, "full")
    assert r"\begin{table}" in compact and "hellaswag" not in compact
    assert r"\begin{table*}" in full and "hellaswag" in full
    assert r"\label{tab:results-smollm2-135m-instruct-compact}" in compact
    assert r"\label{tab:results-smollm2-135m-instruct}" in full


def test_latex_has_a_minus_before_numbers_and_hyphens_in_names():
    rows = (("opt-1.3b", "-1.5"), ("llama2-7b", "<0.0001"), ("x", "62.4 (-5, +3)"))
    text = latex(Table(name="t", title="T", columns=("m", "d"), rows=rows))
    assert "opt-1.3b & $-$1.5" in text
    assert "llama2-7b & $<$0.0001" in text
    assert "62.4 ($-$5, +3)" in text


def test_every_metric_has_a_direction():
    assert direction("acc") == "higher"
    assert direction("perplexity") == "lower"
    assert not METRICS["word_perplexity"].is_fraction
    with pytest.raises(UnknownNameError, match="Metric 'speed' has no direction"):
        direction("speed")
