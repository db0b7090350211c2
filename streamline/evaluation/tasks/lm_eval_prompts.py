"""Prompts in lm-eval's convention for the paper's question sets that lm-eval has no task for.

The question is the context, the option's text the continuation; ``acc`` compares summed
log-likelihoods, ``acc_norm`` divides by the option's length. The wordings follow lm-eval's tasks
of the same kind; RACE has one prompt for each question, where lm-eval's ``race`` has one for
the last question of an article and shows the others with their answers.

Example::

    document("race_high", {"article": "...", "question": "Why?", "options": [...], "answer": "B"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamline.errors import UnknownNameError

__all__ = ["document"]

Row = Mapping[str, Any]
_CMNLI_WORDS = ("无法判断", "对", "错")


def _cmnli(row: Row) -> dict[str, Any]:
    return {
        "context": f"{row['sentence1']}\n问题：{row['sentence2']} 对、错还是无法判断？\n答案：",
        "choices": list(_CMNLI_WORDS),
        "gold": int(row["label"]),
    }


def _c3(row: Row) -> dict[str, Any]:
    content = " ".join(row["context"])
    return {
        "context": f"文章：{content}\n问题：{row['question']}\n答案：",
        "choices": list(row["choice"]),
        "gold": list(row["choice"]).index(row["answer"]),
    }


def _chid(row: Row) -> dict[str, Any]:
    before, _, after = row["content"].partition("#idiom#")
    return {
        "context": before,
        "choices": [idiom + after for idiom in row["candidates"]],
        "gold": int(row["answer"]),
    }


def _race(row: Row) -> dict[str, Any]:
    return {
        "context": f"Article: {row['article']}\n\nQuestion: {row['question']}\nAnswer:",
        "choices": [f" {option}" for option in row["options"]],
        "gold": "ABCD".index(row["answer"]),
    }


_BUILDERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "c3": _c3,
    "chid": _chid,
    "cmnli": _cmnli,
    "race_high": _race,
    "race_middle": _race,
}


def document(questions: str, row: Row) -> dict[str, Any]:
    """One question as context, choices and gold index.

    Args:
        questions: Name of the question set.
        row: The question, with the field names of its hub copy.

    Raises:
        UnknownNameError: If the set has no prompt of this kind here.
    """
    if questions not in _BUILDERS:
        raise UnknownNameError(
            f"No prompt in lm-eval's convention for {questions!r}; there is one for "
            f"{', '.join(_BUILDERS)}."
        )
    return _BUILDERS[questions](row)
