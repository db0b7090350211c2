from __future__ import annotations

import pytest

from streamline.errors import ConfigError
from streamline.evaluation.tasks.generation_prompts import (
    MAX_NEW_TOKENS,
    document,
    gsm8k_answer,
    gsm8k_results,
    longest,
    strategyqa_answer,
    strategyqa_results,
    xsum_answer,
    xsum_results,
)


def test_gsm8k_prompt():
    row = {"question": "How many?", "answer": "so 1 + 1 = 2\n#### 1,002"}
    found = document("gsm8k", row)
    prompt = found["prompt"]
    assert found["target"] == "1002"
    assert prompt.startswith("Question: Angelo and Melanie want")
    assert prompt.count("Let's think step by step\nAnswer:") == 5
    assert "\nThe answer is 4\n\nQuestion: Mark's basketball team" in prompt
    assert "\nThe answer is 201\n\nQuestion: Bella has" in prompt
    assert prompt.endswith(
        "The answer is 146\n\nQuestion: How many?\nLet's think step by step\nAnswer:"
    )


def test_strategyqa_prompt():
    row = {"question": "Is it?", "answer": True}
    found = document("strategyqa", row)
    assert found["target"] == "yes"
    assert found["prompt"].startswith(
        "Question: Do hamsters provide food for any animals?\nAnswer:\n"
    )
    assert found["prompt"].count("\nSo the answer is ") == 6
    assert "Question: Yes or no: Could a llama" in found["prompt"]
    assert found["prompt"].endswith("So the answer is no\n\nQuestion: Is it?\nAnswer:")


def test_xsum_prompt():
    row = {"document": "word " * 100, "summary": "s"}
    ending = "\nBased on the previous text, provide a brief single summary:"
    found = document("xsum", row)
    assert found == {"prompt": "Document：" + row["document"] + ending, "target": "s"}


def test_an_answer_that_leaves_a_prompt_no_room_is_refused():
    assert longest("xsum", MAX_NEW_TOKENS["xsum"] + 80) == 80
    with pytest.raises(ConfigError, match="take 100 of the 120 tokens of the model's context"):
        longest("xsum", 120)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 x 6 = 18\nThe answer is 18\n\nQuestion: 5", "18"),
        ("it is -2.50 dollars", "-2.50"),
        ("The answer is 1,000", "000"),
        ("The answer is 7.", "7"),
        ("none", "NULL"),
        ("Question: 4", "NULL"),
    ],
)
def test_gsm8k_answer(text, answer):
    assert gsm8k_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [("so 18", "18", 1.0), ("so 18.0", "18", 1.0), ("18.5", "18", 0.0), ("none", "18", 0.0)],
)
def test_gsm8k_results(text, gold, score):
    assert gsm8k_results({"target": gold}, [text]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Thus.\nSo the answer is Yes\n\nQuestion: no", "yes"),
        ("the answer is yes. So the answer is no", "no"),
        ("I do not know", "no"),
        ("\n\nyes", ""),
        ("maybe", ""),
    ],
)
def test_strategyqa_answer(text, answer):
    assert strategyqa_answer(text) == answer


def test_strategyqa_results():
    assert strategyqa_results({"target": "no"}, ["So the answer is no"]) == {"exact_match": 1.0}
    assert strategyqa_results({"target": "no"}, ["maybe"]) == {"exact_match": 0.0}


def test_xsum_results_is_rouge1_f1_of_the_first_line():
    assert xsum_answer("\n\n a b \nc") == "a b"
    score = xsum_results({"target": "The cat sat"}, ["\nthe cat ran off\nthe cat sat"])["rouge1"]
    precision, recall = 2 / 4, 2 / 3
    assert score == pytest.approx(2 * precision * recall / (precision + recall))
    assert xsum_results({"target": "cats"}, ["cat"]) == {"rouge1": 0.0}
