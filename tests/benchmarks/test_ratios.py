"""The committed ratios are what comes out of the configs."""

from __future__ import annotations

import csv
from importlib import resources

import pytest

from streamline.benchmarks import ratios
from streamline.report.published import Ratio, published_ratios, published_rows


def _committed() -> list[dict[str, str]]:
    text = (resources.files("streamline.published") / "recomputed_ratios.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    ("suite", "table"),
    [
        ("paper-table1", "v1_table1_ppl"),
        ("paper-table2", "v1_table2_gen"),
        ("paper-table3", "v1_table3_opt"),
        ("paper-table5", "v1_table5_lightweight_models"),
        ("paper-table6", "v1_table6_multiple_mlp"),
    ],
)
def test_the_committed_ratios_come_out_of_the_configs(suite: str, table: str) -> None:
    rows = ratios.recomputed_rows(suite)
    assert rows == [row for row in _committed() if row["file"] == table]
    assert published_ratios(table).keys() == {
        (row.llm, row.method, row.ratio) for row in published_rows(table) if row.method != "Dense"
    }


def test_each_ratio_is_the_printed_one_to_its_last_digit_or_says_why_not() -> None:
    rows = _committed()
    same = []
    for row in rows:
        found, printed = row["as_paper_percent"], float(row["ratio_percent"])
        # half of a printed digit, and half of one that the file keeps
        same.append(bool(found) and abs(float(found) - printed) <= 0.05 + 0.005)
    assert all(bool(row["note"]) != good for row, good in zip(rows, same, strict=True))
    assert (len(rows), sum(same)) == (48, 33)


def test_a_ratio_is_read_with_its_reason() -> None:
    found = published_ratios("v1_table1_ppl")
    assert found["OPT-6.7B", "Ours", 26.0] == Ratio(layers=9, as_paper=26.04, exact=26.21)
    pruner = found["Llama2-7B", "LLMPruner", 27.0]
    assert (pruner.layers, pruner.as_paper, pruner.exact) == (None, None, None)
    assert pruner.note.startswith("27.0 is a share of width")
    assert published_ratios("v1_table7_domains") == {}


def test_a_suite_without_a_way_of_counting_has_no_ratios(tmp_path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("title: T\nmodels: opt-1.3b\nmethods: [dense]\n", encoding="utf-8")
    assert ratios.recomputed_rows(str(suite)) == []


def test_the_file_is_written_anew(tmp_path, monkeypatch) -> None:
    from streamline.run import suites

    monkeypatch.setattr(suites, "suite_files", lambda: {"a": None, "b": None})
    row = dict.fromkeys(ratios.COLUMNS, "x")
    monkeypatch.setattr(ratios, "recomputed_rows", lambda name: [row] if name == "a" else [])
    assert ratios.main([str(tmp_path / "r.csv")]) == 0
    assert (tmp_path / "r.csv").read_text() == ",".join(ratios.COLUMNS) + "\n" + "x," * 7 + "x\n"
