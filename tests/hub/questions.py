"""Question sets as the hub has them: fields and types of November 2026, items made up here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from streamline.results.subjects import MMLU_SUBJECTS

TEXT, INT32, INT64 = Value("string"), Value("int32"), Value("int64")
_CHOICES = {"text": List(TEXT), "label": List(TEXT)}
ANIMALS = ("dog", "cat", "cow", "hen", "fox", "horse", "pig", "rat", "owl", "bee")
PLACES = (
    "barn",
    "house",
    "field",
    "forest",
    "river",
    "garden",
    "market",
    "street",
    "boat",
    "hill",
)

Rows = list[dict[str, Any]]


def splits(rows: Rows, features: Mapping[str, Any], *names: str) -> dict[str, Dataset]:
    made = Dataset.from_list(rows, features=Features(dict(features)))
    return dict.fromkeys(names or ("train", "validation", "test"), made)


def pairs(n: int = 20) -> Iterator[tuple[int, str, str]]:
    """A number, an animal and a place, all pairs different."""
    for index in range(n):
        yield index, ANIMALS[index % 10], PLACES[(index + index // 10) % 10]


def _lettered(options: Sequence[str]) -> dict[str, list[str]]:
    return {"text": list(options), "label": list("ABCDE"[: len(options)])}


def tables() -> dict[str, dict[str, dict[str, Dataset]]]:
    """Repository -> configuration -> split -> rows."""
    label = ClassLabel(names=["False", "True"])
    winogrande = splits(
        [
            {
                "sentence": f"The {a} left the {p} because the _ was cold.",
                "option1": a,
                "option2": p,
                "answer": str(i % 2 + 1),
            }
            for i, a, p in pairs()
        ],
        dict.fromkeys(("sentence", "option1", "option2", "answer"), TEXT),
    )
    hellaswag = splits(
        [
            {
                "ind": i,
                "activity_label": "Walking",
                "ctx_a": f"A {a} walks to the {p}.",
                "ctx_b": "it",
                "ctx": f"A {a} walks to the {p}. it",
                "endings": ["sits down.", "flies away.", "opens a shop.", f"leaves the {p}."],
                "source_id": f"made~{i}",
                "split": "val",
                "split_type": "indomain",
                "label": str(i % 4),
            }
            for i, a, p in pairs()
        ],
        {
            "ind": INT32,
            **dict.fromkeys(("activity_label", "ctx_a", "ctx_b", "ctx"), TEXT),
            "endings": List(TEXT),
            **dict.fromkeys(("source_id", "split", "split_type", "label"), TEXT),
        },
    )
    arc = splits(
        [
            {
                "id": f"made_{i}",
                "question": f"Where does a {a} near the {p} sleep?",
                "choices": _lettered([p, "moon", "cloud", "lamp"]),
                "answerKey": "ABCD"[i % 4],
            }
            for i, a, p in pairs()
        ],
        {"id": TEXT, "question": TEXT, "choices": _CHOICES, "answerKey": TEXT},
    )
    openbookqa = splits(
        [
            {
                "id": f"{i}-9",
                "question_stem": f"A {a} in the {p} eats",
                "choices": _lettered(["grass", "stone", "iron", "light"]),
                "answerKey": "ABCD"[i % 4],
            }
            for i, a, p in pairs()
        ],
        {"id": TEXT, "question_stem": TEXT, "choices": _CHOICES, "answerKey": TEXT},
    )
    commonsense = splits(
        [
            {
                "id": f"{i:032x}",
                "question": f"Where would you look for a {a} that fled the {p}?",
                "question_concept": a,
                "choices": _lettered([p, "moon", "cloud", "lamp", "book"]),
                "answerKey": "ABCDE"[i % 5],
            }
            for i, a, p in pairs()
        ],
        {
            **dict.fromkeys(("id", "question", "question_concept"), TEXT),
            "choices": _CHOICES,
            "answerKey": TEXT,
        },
    )
    boolq = splits(
        [
            {
                "question": f"does the {a} live in the {p}",
                "passage": f"The {a} lives in the {p if i % 2 else 'barn'}.",
                "idx": i,
                "label": i % 2,
            }
            for i, a, p in pairs()
        ],
        {"question": TEXT, "passage": TEXT, "idx": INT32, "label": label},
    )
    wsc = splits(
        [
            {
                "text": f"The {a} left the {p} because it was cold.",
                "span1_index": 0,
                "span2_index": 6,
                "span1_text": f"The {a}",
                "span2_text": "it",
                "idx": i,
                "label": i % 2,
            }
            for i, a, p in pairs()
        ],
        {
            "text": TEXT,
            "span1_index": INT32,
            "span2_index": INT32,
            "span1_text": TEXT,
            "span2_text": TEXT,
            "idx": INT32,
            "label": label,
        },
    )
    return {
        "allenai/winogrande": {"winogrande_xl": winogrande},
        "Rowan/hellaswag": {"data": hellaswag},
        "allenai/ai2_arc": {"ARC-Challenge": arc, "ARC-Easy": arc},
        "allenai/openbookqa": {"additional": openbookqa, "main": openbookqa},
        "tau/commonsense_qa": {"data": commonsense},
        "aps/super_glue": {"boolq": boolq, "wsc": wsc, "wsc.fixed": wsc},
        "lighteval/winograd_wsc": {"wsc273": _wsc273()},
        "cais/mmlu": {subject: _mmlu(subject) for subject in MMLU_SUBJECTS},
        "clue/clue": {"cmnli": _cmnli()},
        "dataset-org/c3": {"dialog": _c3(), "mixed": _c3()},
        "ehovy/race": {"high": _race("high"), "middle": _race("middle")},
        "EdinburghNLP/xsum": {"data": _xsum()},
        "openai/gsm8k": {"main": _gsm8k(), "socratic": _gsm8k()},
    }


def _wsc273() -> dict[str, Dataset]:
    rows = [
        {
            "text": f"The {a} left the {p} because it was cold.",
            "pronoun": "it",
            "pronoun_loc": len(f"The {a} left the {p} because "),
            "quote": "it was cold",
            "quote_loc": len(f"The {a} left the {p} because "),
            "options": [f"The {a}", f"the {p}"],
            "label": i % 2,
            "source": "made",
        }
        for i, a, p in pairs()
    ]
    features = {
        "text": TEXT,
        "pronoun": TEXT,
        "pronoun_loc": INT32,
        "quote": TEXT,
        "quote_loc": INT32,
        "options": List(TEXT),
        "label": ClassLabel(names=["0", "1"]),
        "source": TEXT,
    }
    return splits(rows, features, "test")


def _mmlu(subject: str) -> dict[str, Dataset]:
    rows = [
        {
            "question": f"In {subject}, where is the {a}?",
            "subject": subject,
            "choices": [p, "moon", "cloud", "lamp"],
            "answer": i % 4,
        }
        for i, a, p in pairs(6)
    ]
    answer = ClassLabel(names=list("ABCD"))
    features = {"question": TEXT, "subject": TEXT, "choices": List(TEXT), "answer": answer}
    return splits(rows, features, "test", "validation", "dev")


def _cmnli() -> dict[str, Dataset]:
    rows = [
        {
            "sentence1": f"他{i}点起床。",
            "sentence2": f"他起得{'早' if i < 7 else '晚'}。",
            "label": i % 3,
        }
        for i in range(20)
    ]
    names = ["neutral", "entailment", "contradiction"]
    features = {"sentence1": TEXT, "sentence2": TEXT, "label": ClassLabel(names=names)}
    return splits([row | {"idx": i} for i, row in enumerate(rows)], features | {"idx": INT32})


def _c3() -> dict[str, Dataset]:
    rows = [
        {
            "documents": [f"男：现在{i}点了。", "女：我们走吧。"],
            "document_id": f"d-{i}",
            "questions": {
                "question": ["他们要做什么？", "现在几点？"],
                "answer": ["走", f"{i}点"],
                "choice": [["走", "睡觉", "吃饭"], [f"{i}点", "二十点", "零点", "三十点"]],
            },
        }
        for i in range(1, 11)
    ]
    inner = {"question": List(TEXT), "answer": List(TEXT), "choice": List(List(TEXT))}
    return splits(rows, {"documents": List(TEXT), "document_id": TEXT, "questions": inner})


def _race(level: str) -> dict[str, Dataset]:
    rows = [
        {
            "example_id": f"{level}{i}.txt",
            "article": f"A {a} lived in a {p}. One day it left and did not come back.",
            "answer": "ABCD"[i % 4],
            "question": "What did it do?",
            "options": ["It left.", "It slept.", "It sang.", "It ate."],
        }
        for i, a, p in pairs()
    ]
    features = {"example_id": TEXT, "article": TEXT, "answer": TEXT, "question": TEXT}
    return splits(rows, features | {"options": List(TEXT)})


def _xsum() -> dict[str, Dataset]:
    rows = [
        {
            "document": f"A {a} was seen in the {p}. People came to look.",
            "summary": f"A {a} was seen.",
            "id": f"{i}",
        }
        for i, a, p in pairs()
    ]
    return splits(rows, dict.fromkeys(("document", "summary", "id"), TEXT))


def _gsm8k() -> dict[str, Dataset]:
    rows = [
        {
            "question": f"Tom has {i} {a}s and buys {i + 2} more. How many has he?",
            "answer": f"{i}+{i + 2}=<<{i}+{i + 2}={2 * i + 2}>>{2 * i + 2}\n#### {2 * i + 2}",
        }
        for i, a, _ in pairs()
    ]
    return splits(rows, {"question": TEXT, "answer": TEXT}, "train", "test")


def strategyqa() -> Rows:
    return [
        {
            "qid": f"{i:020x}",
            "term": a,
            "description": "animal",
            "question": f"Could a {a} swim across a {p}?",
            "answer": i % 2 == 0,
            "facts": [f"A {a} lives on land."],
            "decomposition": ["Can it swim?"],
        }
        for i, a, p in pairs()
    ]


def piqa() -> dict[str, Dataset]:
    """Split -> rows of PIQA."""
    rows = [
        {
            "goal": f"bring the {a} to the {p}",
            "sol1": "Lead it there.",
            "sol2": "Fold it twice.",
            "label": i % 2,
        }
        for i, a, p in pairs()
    ]
    return splits(rows, {"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": INT64})
