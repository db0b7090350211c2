from __future__ import annotations

import pytest

from streamline.errors import UnknownNameError
from streamline.report.published import published_names, published_rows, published_slips


def test_every_table_is_read_whole():
    rows = {name: len(published_rows(name)) for name in published_names()}
    assert rows == {
        "v1_table1_ppl": 10,
        "v1_table2_gen": 9,
        "v1_table3_opt": 18,
        "v1_table4_data_quantity": 8,
        "v1_table5_lightweight_models": 18,
        "v1_table6_multiple_mlp": 9,
        "v1_table7_domains": 2,
    }


def test_printed_averages_agree_with_their_cells_except_known_slips():
    odd = []
    for name in published_names():
        if name == "v1_table7_domains":
            continue
        for row in published_rows(name):
            cells = [value for head, value in row.values.items() if head not in ("Ave.", "Per.")]
            if None in cells:
                continue
            if abs(sum(cells) / len(cells) - row.values["Ave."]) > 0.06:
                odd.append((row.llm, row.method, row.ratio))
    assert odd == [("OPT-1.3B", "SliceGPT", 18.1), ("OPT-2.7B", "Ours", 34.6)]
    notes = " ".join(published_slips("v1_table3_opt"))
    assert "OPT-1.3B, SliceGPT, 18.1 %, Ave." in notes
    assert "OPT-2.7B, Ours, 34.6 %, Ave." in notes


def test_a_row_that_is_printed_again_is_there_again():
    dense = [
        row
        for row in published_rows("v1_table3_opt")
        if (row.llm, row.method) == ("OPT-2.7B", "Dense")
    ]
    assert [row.values["Ave."] for row in dense] == [48.9, 48.2, 48.2]
    assert [row.block for row in dense] == [3, 4, 5]


def test_a_printed_dash_is_no_number():
    [row] = [
        row
        for row in published_rows("v1_table2_gen")
        if (row.llm, row.method) == ("Llama2-7B", "SliceGPT")
    ]
    assert (row.values["Xsum"], row.values["GSM8K"]) == (4.9, None)


def test_unknown_tables_are_refused():
    with pytest.raises(UnknownNameError, match="No published table 'v9'; there are v1_table1_ppl"):
        published_rows("v9")
