"""The scored texts, letter by letter."""

from __future__ import annotations

from streamline.evaluation.tasks.opencompass_prompts import (
    TEMPLATES,
    hellaswag_context,
    mark_spans,
    pad_choices,
)


def test_cmnli():
    row = {"sentence1": "天晴", "sentence2": "下雨", "label": 2}
    head = "语句一：“天晴”\n语句二：“下雨”\n请问这两句话是什么关系？\n"
    template = TEMPLATES["cmnli"]
    assert template.labels == ("contradiction", "entailment", "neutral")
    assert template.texts(row) == [head + "矛盾", head + "蕴含", head + "无关"]
    assert [template.gold({"label": i}) for i in (0, 1, 2)] == [2, 1, 0]


def test_c3_repeats_the_first_choice():
    row = {"context": ["男：走?", "女：走。"], "question": "去哪", "choice": ["家", "店", "路"]}
    row["answer"] = "路"
    head = "文章：男：走? 女：走。\n问题：去哪\n答案："
    assert TEMPLATES["c3"].texts(row) == [head + x for x in ("家", "店", "路", "家")]
    assert TEMPLATES["c3"].gold(row) == 2


def test_chid():
    row = {"content": "他#idiom#了。", "candidates": list("甲乙丙丁戊己庚"), "answer": 4}
    texts = TEMPLATES["chid"].texts(row)
    assert len(texts) == 7
    assert texts[4] == "以下句子是否通顺？\n他戊了。\n这个句子是通顺的。"
    assert TEMPLATES["chid"].gold(row) == 4


def test_wsc():
    row = {"text": "Mark told Pete many lies . He lied", "label": 1}
    row |= {"span1_text": "Mark", "span1_index": 0, "span2_text": "He", "span2_index": 6}
    head = (
        "Passage: * Mark * told Pete many lies . # He # lied\n"
        "Does the pronoun # He # refer to * Mark *?\nA. Yes\nB. No\nAnswer: \n"
    )
    assert TEMPLATES["wsc"].texts(row) == [head + "A", head + "B"]
    assert TEMPLATES["wsc"].gold(row) == 0
    assert TEMPLATES["wsc"].gold(row | {"label": 0}) == 1


def test_mark_spans_of_several_words_and_overlapping():
    row = {"text": "the old man saw it", "span1_text": "the old man", "span1_index": 0}
    row |= {"span2_text": "it", "span2_index": 4}
    assert mark_spans(row) == "* the old man * saw # it #"
    assert mark_spans(row | {"span2_index": 2}) == "* the old man * saw it"


def test_boolq():
    row = {"passage": "T -- p.", "question": "is it", "label": 1}
    assert TEMPLATES["boolq"].texts(row) == [
        "T -- p.\nQuestion: is it?\nNo",
        "T -- p.\nQuestion: is it?\nYes",
    ]
    assert TEMPLATES["boolq"].gold(row) == 1


def _hellaswag(ctx_a: str) -> dict:
    return {
        "activity_label": "Roofing",
        "ctx_a": ctx_a,
        "ctx_b": "he",
        "endings": ["sits [step] down.", " stands  up.", "[title] runs", "x"],
        "label": "1",
    }


def test_hellaswag():
    row = _hellaswag("A man is [substeps] here.")
    texts = TEMPLATES["hellaswag"].texts(row)
    assert texts[0] == "A man is here. He\nsits down."
    assert texts[1] == "A man is here. He\nstands up."
    assert TEMPLATES["hellaswag"].gold(row) == 1


def test_hellaswag_context_loses_what_precedes_a_colon():
    assert hellaswag_context(_hellaswag("How to sit: Take a chair.")) == "Take a chair. He"
    assert hellaswag_context(_hellaswag("One: two: three.")) == "two: three. He"


def test_piqa_ends_with_a_line_break():
    row = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
    assert TEMPLATES["piqa"].texts(row) == [
        "The following makes sense: \nQ: g\nA: a\n",
        "The following makes sense: \nQ: g\nA: b\n",
    ]


def test_race():
    row = {"article": "Art.", "question": "Why _ ?", "options": list("wxyz"), "answer": "C"}
    text = (
        "Read the article, and answer the question by replying A, B, C or D.\n\nArticle:\nArt.\n\n"
        "Q: Why _ ?\n\nA. w\nB. x\nC. y\nD. z\nA: C"
    )
    assert TEMPLATES["race_high"].texts(row)[2] == text
    assert TEMPLATES["race_middle"].gold(row) == 2


def _csqa(question: str, answer: str) -> dict:
    choices = {"label": list("ABCDE"), "text": [f"{question}{x}" for x in "12345"]}
    return {"question": question, "choices": choices, "answerKey": answer}


def test_commonsense_qa_with_three_and_five_line_breaks():
    shots = [_csqa("s", "B"), _csqa("t", "E")]
    examples = "Question: s\nAnswer: \ns2\n\n\nQuestion: t\nAnswer: \nt5"
    expected = examples + "\n\n\n\n\nQuestion: q\nAnswer: \nq1"
    template = TEMPLATES["commonsense_qa"]
    assert template.n_shots == 8
    assert template.text(_csqa("q", "A"), 0, shots) == expected
    assert template.text(_csqa("q", "A"), 0) == "\n\nQuestion: q\nAnswer: \nq1"
    assert template.gold(_csqa("q", "D")) == 3


def _mmlu(question: str, answer: int) -> dict:
    return {"question": question, "choices": list("wxyz"), "answer": answer}


def test_mmlu_has_two_spaces_and_a_blank_line_after_each_example():
    template = TEMPLATES["mmlu"]
    hint = "The following are multiple choice questions (with answers) about  college law.\n\n"
    options = "A. w\nB. x\nC. y\nD. z\nAnswer: "
    shots = [_mmlu("s", 1), _mmlu("t", 3)]
    assert template.text(_mmlu("q ", 2), 0, shots, "college_law") == (
        f"{hint}s\n{options}B\n\nt\n{options}D\n\nq \n{options}A"
    )
    assert template.text(_mmlu("q", 2), 3, (), "college_law") == f"{hint}\nq\n{options}D"


def test_cmmlu_repeats_its_header():
    def row(question: str, answer: str) -> dict:
        return {"Question": question, "A": "1", "B": "2", "C": "3", "D": "4", "Answer": answer}

    def block(question: str, letter: str) -> str:
        return (
            "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n"
            f"题目：{question}\nA. 1\nB. 2\nC. 3\nD. 4\n答案是: {letter}"
        )

    shots = [row("s", "B"), row("t", "D")]
    template = TEMPLATES["cmmlu"]
    assert template.text(row("q", "A"), 2, shots, "agronomy") == (
        block("s", "B") + "\n\n\n" + block("t", "D") + "\n\n\n\n\n" + block("q", "C")
    )
    assert template.text(row("q", "A"), 2, (), "agronomy") == "\n\n" + block("q", "C")


def test_fields_are_filled_one_after_the_other():
    row = {"goal": "a {sol1} b", "sol1": "x", "sol2": "y", "label": 0}
    assert TEMPLATES["piqa"].text(row, 1) == "The following makes sense: \nQ: a x b\nA: y\n"


def test_pad_choices():
    assert pad_choices(["a", "b"]) == ["a", "b", "a", "a"]
    assert pad_choices(list("abcd")) == list("abcd")


def test_texts_of_one_question_have_a_common_prefix():
    row = _mmlu("q", 1)
    first, *others = TEMPLATES["mmlu"].texts(row, [_mmlu("s", 1)], "anatomy")
    assert all(text[:-1] == first[:-1] for text in others)
