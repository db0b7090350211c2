"""Readers of original files, each on made-up items in its authors' form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamline.errors import AssetError
from streamline.evaluation.tasks.original_files import READERS, read


def _lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_c3_gives_one_row_a_question_and_joins_nothing(tmp_path):
    path = tmp_path / "c3-d-dev.json"
    questions = [
        {"question": "去哪?", "choice": ["家", "店", "路"], "answer": "店"},
        {"question": "谁?", "choice": ["甲", "乙", "丙", "丁"], "answer": "甲"},
    ]
    path.write_text(json.dumps([[["男：走吗?", "女：走。"], questions, "1-1"]]), "utf-8")
    rows = read("c3", path)
    assert [r["question"] for r in rows] == ["去哪?", "谁?"]
    assert rows[0]["context"] == ["男：走吗?", "女：走。"]
    assert rows[0]["choice"] == ["家", "店", "路"]


def test_chid(tmp_path):
    path = _lines(
        tmp_path / "test_public.json",
        {"id": 3, "candidates": list("甲乙丙丁戊己庚"), "content": "他#idiom#。", "answer": 6},
    )
    assert read("chid", path) == [
        {"content": "他#idiom#。", "candidates": list("甲乙丙丁戊己庚"), "answer": 6}
    ]


def test_cmmlu_skips_header_and_counter_and_keeps_commas(tmp_path):
    path = tmp_path / "agronomy.csv"
    path.write_text(',Question,A,B,C,D,Answer\n0,"甲,乙 ",1,2,3,4,C\n', "utf-8")
    assert read("cmmlu", path) == [
        {"Question": "甲,乙 ", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "C"}
    ]


def test_mmlu_has_no_header(tmp_path):
    path = tmp_path / "anatomy_test.csv"
    path.write_text('"Which, if any? ",one,two,three,four,D\n', "utf-8")
    assert read("mmlu", path) == [
        {"question": "Which, if any? ", "choices": ["one", "two", "three", "four"], "answer": 3}
    ]


def test_cmnli_drops_pairs_without_a_label(tmp_path):
    pair = {"sentence1": "一", "sentence2": "二"}
    path = _lines(
        tmp_path / "dev.json",
        *(pair | {"label": x} for x in ("neutral", "-", "entailment", "contradiction")),
    )
    assert [r["label"] for r in read("cmnli", path)] == [0, 1, 2]


@pytest.mark.parametrize("label", [True, "true"])
def test_wsc_reads_superglue_and_flat_rows(tmp_path, label):
    spans = {"span1_index": 0, "span1_text": "Mark", "span2_index": 4, "span2_text": "He"}
    nested = _lines(tmp_path / "a.jsonl", {"text": "t", "target": spans, "label": label, "idx": 1})
    flat = _lines(tmp_path / "b.jsonl", {"text": "t", "label": 1} | spans)
    assert read("wsc", nested) == read("wsc", flat) == [{"text": "t", "label": 1} | spans]


@pytest.mark.parametrize(("label", "gold"), [(True, 1), ("false", 0), (False, 0), ("true", 1)])
def test_boolq_reads_booleans_and_words(tmp_path, label, gold):
    path = _lines(tmp_path / "v.jsonl", {"passage": "T -- p", "question": "q", "label": label})
    assert read("boolq", path) == [{"question": "q", "passage": "T -- p", "label": gold}]


def test_boolq_own_form_puts_the_title_in_front(tmp_path):
    path = _lines(
        tmp_path / "d.jsonl", {"passage": "p", "title": "T", "question": "q", "answer": True}
    )
    assert read("boolq", path)[0]["passage"] == "T -- p"


def test_boolq_refuses_other_labels(tmp_path):
    path = _lines(tmp_path / "v.jsonl", {"passage": "p", "question": "q", "label": "maybe"})
    with pytest.raises(AssetError, match="expected true or false, found 'maybe'"):
        read("boolq", path)


def test_race_reads_questions_articles_and_folders_alike(tmp_path):
    whole = {
        "article": "text",
        "questions": ["q1", "q2"],
        "options": [list("abcd"), list("efgh")],
        "answers": ["A", "D"],
    }
    single = [
        {"article": "text", "question": "q1", "options": list("abcd"), "answer": "A"},
        {"article": "text", "question": "q2", "options": list("efgh"), "answer": "D"},
    ]
    folder = tmp_path / "high"
    folder.mkdir()
    (folder / "10.txt").write_text(json.dumps(whole | {"article": "later"}), "utf-8")
    (folder / "9.txt").write_text(json.dumps(whole), "utf-8")
    assert read("race", _lines(tmp_path / "a.jsonl", whole)) == single
    assert read("race", _lines(tmp_path / "b.jsonl", *single)) == single
    assert [r["article"] for r in read("race", folder)] == ["text", "text", "later", "later"]


def test_xsum_takes_1000_lines_and_skips_numbers(tmp_path):
    rows = [{"dialogue": f"d{i}", "summary": "s"} for i in range(1005)]
    rows[3]["summary"] = 0.5
    found = read("xsum", _lines(tmp_path / "dev.jsonl", *rows))
    assert len(found) == 999
    assert found[3] == {"document": "d4", "summary": "s"}


def test_gsm8k_reads_both_forms(tmp_path):
    own = _lines(tmp_path / "a.jsonl", {"question": "q", "answer": "so\n#### 1,200"})
    other = _lines(
        tmp_path / "b.jsonl", {"context": "q", "chain_of_thought": "so", "answer": "1,200"}
    )
    assert read("gsm8k", own) == read("gsm8k", other)


def test_strategyqa_reads_json_and_lines(tmp_path):
    rows = [{"qid": "x", "question": "q", "answer": False, "facts": []}]
    whole = tmp_path / "dev.json"
    whole.write_text(json.dumps(rows), "utf-8")
    expected = [{"question": "q", "answer": False}]
    assert read("strategyqa", whole) == expected
    assert read("strategyqa", _lines(tmp_path / "dev.jsonl", *rows, *rows)) == expected * 2


def test_piqa_takes_labels_from_the_second_file(tmp_path):
    rows = [{"goal": "g", "sol1": "a", "sol2": "b"}] * 2
    path = _lines(tmp_path / "dev.jsonl", *rows)
    (tmp_path / "dev-labels.lst").write_text("1\n0\n")
    assert [r["label"] for r in read("piqa", path)] == [1, 0]


def test_piqa_refuses_a_short_label_file(tmp_path):
    path = _lines(tmp_path / "dev.jsonl", {"goal": "g", "sol1": "a", "sol2": "b"})
    (tmp_path / "dev-labels.lst").write_text("1\n0\n")
    with pytest.raises(AssetError, match="1 questions but 2 labels"):
        read("piqa", path)


def test_stem_forms(tmp_path):
    choices = [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]
    path = _lines(
        tmp_path / "t.jsonl",
        {"id": "1", "question": {"stem": "s", "choices": choices}, "answerKey": "B"},
    )
    inner = {"text": ["x", "y"], "label": ["A", "B"]}
    assert read("arc", path)[0]["question"] == "s"
    assert read("openbookqa", path)[0]["question_stem"] == "s"
    row = read("commonsense_qa", path)[0]
    assert (row["question"], row["choices"], row["answerKey"]) == ("s", inner, "B")


def test_wsc273_gives_the_readings_whole(tmp_path):
    path = _lines(
        tmp_path / "w.jsonl",
        {"context_options": ["The dog", "The cat"], "continuation": "slept.", "gold": 1},
    )
    (row,) = read("wsc273", path)
    start = row["pronoun_loc"]
    assert [row["text"][:start] + o for o in row["options"]] == ["The dog", "The cat"]
    assert row["text"][start + len(row["pronoun"]) :] == " slept."
    assert row["label"] == 1


@pytest.mark.parametrize("reader", sorted(READERS))
def test_another_form_is_refused(tmp_path, reader):
    path = tmp_path / "other.jsonl"
    path.write_text('{"something": "else"}\n', "utf-8")
    with pytest.raises(AssetError, match="not in the form its authors publish"):
        read(reader, path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text("", "utf-8")
    with pytest.raises(AssetError, match="holds no questions"):
        read("chid", path)
