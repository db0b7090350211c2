"""The three generation tasks: prompts, and how an answer is extracted from the generated text.

Prompts, examples and extraction are those of OpenCompass 0.2.3 (``Xsum_gen_31397e``,
``gsm8k_gen_1d7fe4``, ``strategyqa_gen_1180a7``); the examples are the public ones of the
chain-of-thought papers and lie in ``tasks/paper_gen/shots.json``.

Example::

    gsm8k_answer("so 3 x 6 = 18. The answer is 18")    # "18"
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from streamline.errors import ConfigError

__all__ = [
    "MAX_NEW_TOKENS",
    "PROMPTS",
    "document",
    "gsm8k_answer",
    "gsm8k_results",
    "longest",
    "strategyqa_answer",
    "strategyqa_results",
    "xsum_answer",
    "xsum_results",
]

Row = Mapping[str, Any]
_LEAST = 32  # tokens to which a prompt may be truncated
MAX_NEW_TOKENS = {"gsm8k": 512, "strategyqa": 512, "xsum": 100}
_QUESTIONS = {
    "gsm8k": "Question: {question}\nLet's think step by step\nAnswer:",
    "strategyqa": "Question: {question}\nAnswer:",
}
_ANSWERS = {
    "gsm8k": "{reasoning}\nThe answer is {answer}\n",
    "strategyqa": "{reasoning}\nSo the answer is {answer}\n",
}


@lru_cache(maxsize=1)
def _shots() -> dict[str, list[dict[str, str]]]:
    text = files("streamline.tasks").joinpath("paper_gen/shots.json").read_text(encoding="utf-8")
    shots: dict[str, list[dict[str, str]]] = json.loads(text)
    return shots


def _with_shots(name: str, question: str) -> str:
    """Examples and question, one line break between all turns."""
    turns: list[str] = []
    for shot in _shots()[name]:
        turns.append(_QUESTIONS[name].replace("{question}", shot["question"]))
        answer = _ANSWERS[name].replace("{answer}", shot["answer"])
        turns.append(answer.replace("{reasoning}", shot["reasoning"]))
    turns.append(_QUESTIONS[name].replace("{question}", question))
    return "\n".join(turns)


def _gsm8k(row: Row) -> tuple[str, str]:
    gold = str(row["answer"]).split("#### ")[1].replace(",", "")
    return _with_shots("gsm8k", row["question"]), gold


def _strategyqa(row: Row) -> tuple[str, str]:
    return _with_shots("strategyqa", row["question"]), "yes" if row["answer"] else "no"


def _xsum(row: Row) -> tuple[str, str]:
    prompt = (
        f"Document：{row['document']}\nBased on the previous text, provide a brief single summary:"
    )
    return prompt, row["summary"]


PROMPTS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "gsm8k": _gsm8k,
    "strategyqa": _strategyqa,
    "xsum": _xsum,
}


def longest(name: str, max_length: int) -> int:
    """Most tokens of a prompt; a longer one loses its beginning.

    Args:
        name: A key of ``PROMPTS``.
        max_length: Tokens of prompt and answer together.

    Raises:
        ConfigError: If an answer alone fills that.
    """
    most = max_length - MAX_NEW_TOKENS[name]
    if most < _LEAST:
        raise ConfigError(
            f"{name} lets an answer take {MAX_NEW_TOKENS[name]} of the {max_length} tokens of the "
            f"model's context; leave {name} out for this model"
        )
    return most


def document(name: str, row: Row) -> dict[str, str]:
    """One question as ``prompt`` and ``target``.

    Args:
        name: A key of ``PROMPTS``.
        row: The question, with the field names of its hub copy.
    """
    prompt, target = PROMPTS[name](row)
    return {"prompt": prompt, "target": target}


def gsm8k_answer(text: str) -> str:
    """The last number before the model asks itself a new question; ``NULL`` if there is none.

    A comma ends a number, so "1,000" is read as "000".
    """
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", text.split("Question:")[0])
    return str(numbers[-1]) if numbers else "NULL"


def strategyqa_answer(text: str) -> str:
    """The first "yes" or "no" after the last "answer is " of the first paragraph, or nothing.

    "no" is also found inside words such as "not" and "know".
    """
    tail = text.split("\n\n")[0].split("answer is ")[-1]
    match = re.search(r"yes|no", tail.lower())
    return match.group(0) if match else ""


def xsum_answer(text: str) -> str:
    """The first line that is not blank."""
    return text.strip().split("\n")[0].strip()


def gsm8k_results(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """``exact_match``: the same string, or the same number within 1e-6."""
    found, gold = gsm8k_answer(results[0]), doc["target"]
    same = found == gold
    if not same and found != "NULL":
        same = abs(float(found) - int(gold)) < 1e-6
    return {"exact_match": float(same)}


def strategyqa_results(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """``exact_match`` of yes or no."""
    return {"exact_match": float(strategyqa_answer(results[0]) == doc["target"])}


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=False)


def xsum_results(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """``rouge1``: F1 over single words, without stemming, in [0, 1]."""
    scores = _rouge().score(doc["target"], xsum_answer(results[0]))
    return {"rouge1": float(scores["rouge1"].fmeasure)}
