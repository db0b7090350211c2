"""Readers of the files that data sets' own authors publish, for ``--data-dir``.

Each reader turns one file into rows with the field names of the set's hub copy (see
``question_sets.py``), nothing stripped and nothing reordered.

Example::

    rows = read("c3", Path("data/c3/c3-d-dev.json"))   # 1,825 questions
    rows[0]["choices"]
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamline.errors import AssetError
from streamline.evaluation.tasks.row_checks import check_rows

__all__ = ["READERS", "Row", "read"]

Row = dict[str, Any]


def read(reader: str, path: Path) -> list[Row]:
    """Read one original file.

    Args:
        reader: A key of ``READERS``.
        path: The file (a folder, for RACE's one-file-an-article form).

    Returns:
        Rows in the file's order.

    Raises:
        AssetError: If the file does not have the shape its authors gave it, or a question has a
            null text, no right option, one option or an empty one, or is there twice.
    """
    try:
        rows = READERS[reader](path)
        check_rows(reader, rows)
    except (KeyError, ValueError, TypeError, IndexError, FileNotFoundError) as error:
        raise AssetError(
            f"{path} is not in the form its authors publish ({type(error).__name__}: {error}); "
            f"tasks/README.md names the file that is meant."
        ) from error
    if not rows:
        raise AssetError(f"{path} holds no questions.")
    return rows


def _json_lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def _json_any(path: Path) -> Any:
    """Read one JSON document, or JSON lines: both forms are in circulation."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _csv_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return [row for row in csv.reader(stream) if row]


def _truth(value: Any) -> bool:
    """A label that some copies store as true and others as "true"."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in {"true", "false"}:
        return str(value).lower() == "true"
    raise ValueError(f"expected true or false, found {value!r}")


def _piqa(path: Path) -> list[Row]:
    """PIQA keeps its answers in a second file, one a line: dev.jsonl and dev-labels.lst."""
    rows = _json_lines(path)
    if "label" not in rows[0]:
        answers = path.with_name(f"{path.stem}-labels.lst").read_text(encoding="utf-8").split()
        if len(answers) != len(rows):
            raise ValueError(f"{len(rows)} questions but {len(answers)} labels")
        rows = [row | {"label": answer} for row, answer in zip(rows, answers, strict=True)]
    return [
        {"goal": r["goal"], "sol1": r["sol1"], "sol2": r["sol2"], "label": int(r["label"])}
        for r in rows
    ]


def _hellaswag(path: Path) -> list[Row]:
    keys = ("activity_label", "ctx_a", "ctx_b", "endings")
    return [{k: r[k] for k in keys} | {"label": str(r["label"])} for r in _json_lines(path)]


def _choices(options: list[Row]) -> Row:
    return {"text": [o["text"] for o in options], "label": [o["label"] for o in options]}


def _stems(path: Path) -> list[Row]:
    """The AI2 form: a question object with a stem and a list of labelled choices."""
    return [
        {"stem": r["question"]["stem"], "choices": _choices(r["question"]["choices"])}
        | {"id": r["id"], "answerKey": r["answerKey"]}
        for r in _json_lines(path)
    ]


def _arc(path: Path) -> list[Row]:
    return [r | {"question": r.pop("stem")} for r in _stems(path)]


def _openbookqa(path: Path) -> list[Row]:
    return [r | {"question_stem": r.pop("stem")} for r in _stems(path)]


def _boolq(path: Path) -> list[Row]:
    """SuperGLUE's file says ``label``, BoolQ's own says ``answer`` and has a separate title."""
    rows = _json_lines(path)
    out = []
    for row in rows:
        passage = row["passage"]
        if "label" not in row and row.get("title"):
            passage = f"{row['title']} -- {passage}"
        answer = _truth(row["label"] if "label" in row else row["answer"])
        out.append({"question": row["question"], "passage": passage, "label": int(answer)})
    return out


def _mmlu(path: Path) -> list[Row]:
    """Six columns without a header: question, A, B, C, D, letter."""
    return [
        {"question": q, "choices": [a, b, c, d], "answer": "ABCD".index(letter)}
        for q, a, b, c, d, letter in _csv_rows(path)
    ]


def _cmmlu(path: Path) -> list[Row]:
    """A header row, and a first column that only counts."""
    header, *rows = _csv_rows(path)
    names = ("Question", "A", "B", "C", "D", "Answer")
    columns = [header.index(name) for name in names]
    return [{name: row[i] for name, i in zip(names, columns, strict=True)} for row in rows]


def _cmnli(path: Path) -> list[Row]:
    """CLUE's JSON lines; pairs without a gold label ('-') are dropped."""
    names = {"neutral": 0, "entailment": 1, "contradiction": 2}
    return [
        {"sentence1": r["sentence1"], "sentence2": r["sentence2"], "label": names[r["label"]]}
        for r in _json_lines(path)
        if r["label"] != "-"
    ]


def _c3(path: Path) -> list[Row]:
    """``[[paragraphs], [questions], id]`` a document; one row a question."""
    return [
        {
            "context": paragraphs,
            "question": q["question"],
            "choice": q["choice"],
            "answer": q["answer"],
        }
        for paragraphs, questions, *_ in _json_any(path)
        for q in questions
    ]


def _chid(path: Path) -> list[Row]:
    return [
        {"content": r["content"], "candidates": r["candidates"], "answer": int(r["answer"])}
        for r in _json_lines(path)
    ]


def _wsc(path: Path) -> list[Row]:
    """SuperGLUE's form (spans under ``target``), or the same flattened as on the hub."""
    out = []
    for row in _json_lines(path):
        spans = row.get("target", row)
        names = ("span1_index", "span1_text", "span2_index", "span2_text")
        label = row["label"]
        truth = bool(label) if label in (0, 1) else _truth(label)
        out.append({"text": row["text"], "label": int(truth)} | {n: spans[n] for n in names})
    return out


def _race(path: Path) -> list[Row]:
    """One line an article or a question; or a folder with one file an article."""
    if path.is_dir():
        files = sorted(path.glob("*.txt"), key=lambda p: (len(p.stem), p.stem))
        rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    else:
        rows = _json_lines(path)
    out = []
    for row in rows:
        if "questions" in row:
            questions = zip(row["questions"], row["options"], row["answers"], strict=True)
        else:
            questions = zip([row["question"]], [row["options"]], [row["answer"]], strict=True)
        out += [
            {"article": row["article"], "question": q, "options": o, "answer": a}
            for q, o, a in questions
        ]
    return out


def _xsum(path: Path) -> list[Row]:
    """``dialogue`` and ``summary``; the first 1000 lines, those with numbers for text skipped."""
    rows = _json_lines(path)[:1000]
    pairs = [(r.get("dialogue", r.get("document")), r["summary"]) for r in rows]
    return [
        {"document": d, "summary": s} for d, s in pairs if isinstance(d, str) and isinstance(s, str)
    ]


def _gsm8k(path: Path) -> list[Row]:
    """OpenAI's form (answer after ``####``), or context / chain_of_thought / answer."""
    return [
        {"question": r["question"], "answer": r["answer"]}
        if "question" in r
        else {"question": r["context"], "answer": f"{r['chain_of_thought']}\n#### {r['answer']}"}
        for r in _json_lines(path)
    ]


def _strategyqa(path: Path) -> list[Row]:
    return [{"question": r["question"], "answer": _truth(r["answer"])} for r in _json_any(path)]


def _winogrande(path: Path) -> list[Row]:
    names = ("sentence", "option1", "option2", "answer")
    return [{name: row[name] for name in names} for row in _json_lines(path)]


def _commonsense_qa(path: Path) -> list[Row]:
    return [
        {"question": r["stem"], **{k: r[k] for k in ("choices", "answerKey")}} for r in _stems(path)
    ]


def _wsc273(path: Path) -> list[Row]:
    """The 273 Winograd schemas with both readings spelt out, in lm-eval's ``wsc273`` fields.

    lm-eval scores what follows the pronoun after each reading of what precedes it. The file has
    the whole readings, so each is an "option" at the start of the text.
    """
    return [
        {
            "text": f"_ {r['continuation']}",
            "pronoun": "_",
            "pronoun_loc": 0,
            "options": list(r["context_options"]),
            "label": int(r["gold"]),
        }
        for r in _json_lines(path)
    ]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    "arc": _arc,
    "boolq": _boolq,
    "c3": _c3,
    "chid": _chid,
    "cmmlu": _cmmlu,
    "cmnli": _cmnli,
    "commonsense_qa": _commonsense_qa,
    "gsm8k": _gsm8k,
    "hellaswag": _hellaswag,
    "mmlu": _mmlu,
    "openbookqa": _openbookqa,
    "piqa": _piqa,
    "race": _race,
    "strategyqa": _strategyqa,
    "winogrande": _winogrande,
    "wsc": _wsc,
    "wsc273": _wsc273,
    "xsum": _xsum,
}
