"""Questions that cannot be asked are refused by their number, from a file and from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from streamline.errors import AssetError
from streamline.evaluation.building import build
from streamline.evaluation.harness import task_part
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.evaluation.tasks.original_files import read
from streamline.testing.models import tiny_tokenizer

Rows = list[dict[str, Any]]
WHOLE: dict[str, Callable[[int], dict[str, Any]]] = {
    "piqa": lambda i: {"goal": f"keep {i} dry", "sol1": "a", "sol2": "b", "label": i % 2},
    "hellaswag": lambda i: {
        "activity_label": "A",
        "ctx_a": f"one {i}",
        "ctx_b": "",
        "endings": ["a", "b", "c", "d"],
        "label": i % 4,
    },
    "winogrande": lambda i: {
        "sentence": f"{i} _ is",
        "option1": "a",
        "option2": "b",
        "answer": str(1 + i % 2),
    },
    "cmnli": lambda i: {"sentence1": f"{i}", "sentence2": "b", "label": "neutral"},
    "chid": lambda i: {"content": f"{i} #idiom#", "candidates": list("abcdefg"), "answer": i},
    "arc": lambda i: {
        "id": f"q{i}",
        "question": {
            "stem": f"why {i}",
            "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}],
        },
        "answerKey": "AB"[i % 2],
    },
}


def put(name: str, value: Any, number: int = 2) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[number][name] = value

    return change


def twice(rows: Rows) -> None:
    rows.append(dict(rows[2]))


FAULTS = [
    ("piqa", put("label", -1), "right option is -1"),
    ("piqa", put("label", 2), "right option is 2"),
    ("piqa", put("goal", None), "goal is null, and must be text"),
    ("piqa", put("goal", 7), "goal is 7, and must be text"),
    ("piqa", put("sol2", ""), "option 1 is empty"),
    ("piqa", put("sol2", None), "sol2 is null"),
    ("piqa", twice, "question 4 is there twice"),
    ("hellaswag", put("label", ""), "invalid literal"),
    ("hellaswag", put("endings", ["a"]), "1 option, and there is nothing to choose"),
    ("hellaswag", put("endings", ["a", None, "c", "d"]), "endings is null"),
    ("winogrande", put("answer", ""), "invalid literal"),
    ("winogrande", put("answer", "3"), "right option is 2"),
    ("chid", put("answer", 7), "right option is 7"),
    ("arc", put("answerKey", "E"), "'E' is not in list"),
    ("arc", put("answerKey", None), "answerKey is null"),
    ("arc", twice, "question 4 is there twice"),
]


@pytest.mark.parametrize(("reader", "fault", "words"), FAULTS)
def test_a_question_of_a_file_that_cannot_be_asked_is_named(
    tmp_path: Path, reader: str, fault: Callable[[Rows], None], words: str
) -> None:
    rows = [WHOLE[reader](i) for i in range(4)]
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert len(read(reader, file)) == 4
    fault(rows)
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(AssetError, match="question [24]") as error:
        read(reader, file)
    assert words in str(error.value) and str(file) in str(error.value)


def test_a_file_with_everything_twice_is_refused_where_single_questions_may_repeat(
    tmp_path: Path,
) -> None:
    file = tmp_path / "cmnli.jsonl"
    rows = [WHOLE["cmnli"](i) for i in range(4)]
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    assert len(read("cmnli", file)) == 5
    file.write_text("\n".join(map(json.dumps, rows * 2)), encoding="utf-8")
    with pytest.raises(AssetError, match="question 4 is there twice"):
        read("cmnli", file)


def make(docs: Rows, **changes: Any) -> Any:
    from lm_eval.api.task import ConfigurableTask

    config = {
        "task": "toy",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    return ConfigurableTask(config=config | changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gold": -1}, "right option is -1"),
        ({"gold": 3}, "right option is 3"),
        ({"options": ["so", "", "no"]}, "option 1 is empty"),
        ({"options": ["so"], "gold": 0}, "1 option, and there is nothing to choose"),
        ({"options": ["so", None, "no"]}, "option 1 is null"),
        ({"q": None}, "q is null, and its text would have the word None"),
    ],
)
def test_a_question_from_anywhere_that_cannot_be_asked_is_named(
    change: dict[str, Any], words: str
) -> None:
    docs: Rows = [{"q": f"why {i}", "options": ["so", "no", "may be"], "gold": i} for i in range(3)]
    entry = TaskEntry(name="toy", tasks=("toy",), protocol="lm-eval", metric="acc")
    assert task_part(make(docs), entry, tiny_tokenizer(), max_length=512).n_docs == 3
    docs[1] |= change
    with pytest.raises(AssetError, match=f"question 1 of toy cannot be asked: .*{words}"):
        task_part(make(docs), entry, tiny_tokenizer(), max_length=512)


def test_the_label_of_an_unlabelled_pair_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1, as the hub marks it, was read as the last of three."""
    from streamline.evaluation.tasks import documents

    rows = [{"sentence1": "a", "sentence2": "b", "label": -1}]
    monkeypatch.setattr(documents, "load_questions", lambda _: Dataset.from_list(rows))
    with pytest.raises(
        AssetError, match=r"question 0 of .*cmnli.* cannot be asked .*right option is 3"
    ):
        build(resolve(["streamline_cmnli"]), tiny_tokenizer(), max_length=512, source="hub")


def test_null_in_a_list_that_a_template_shows_is_named() -> None:
    docs: Rows = [{"q": f"{i}", "one": "so", "other": "no", "gold": 0} for i in range(3)]
    docs[2]["other"] = None
    asked = make(docs, doc_to_choice="{{[one, other]}}")
    entry = TaskEntry(name="toy", tasks=("toy",), protocol="lm-eval", metric="acc")
    with pytest.raises(AssetError, match="question 2 of toy cannot be asked: other is null"):
        task_part(asked, entry, tiny_tokenizer(), max_length=512)


def test_null_that_no_prompt_shows_is_of_no_matter() -> None:
    docs: Rows = [
        {"q": f"q{i}", "hint": None, "options": ["so", "no"], "gold": 0} for i in range(3)
    ]
    asked = make(docs, doc_to_text="{% if hint %}{{hint}} {% endif %}{{q}}")
    entry = TaskEntry(name="toy", tasks=("toy",), protocol="lm-eval", metric="acc")
    part = task_part(asked, entry, tiny_tokenizer(), max_length=512)
    assert [instance.args[0] for instance in part.instances[::2]] == ["q0", "q1", "q2"]
    assert not {"doc_to_text", "doc_to_choice", "doc_to_target"} & set(vars(asked))


def test_null_in_an_example_is_refused() -> None:
    docs: Rows = [{"q": f"why {i}", "options": ["so", "no"], "gold": 0} for i in range(3)]
    shots = [{"q": None, "options": ["so", "no"], "gold": 0}]
    asked = make(
        docs,
        custom_dataset=lambda **_: {"test": Dataset.from_list(docs), "few": shots},
        fewshot_split="few",
        num_fewshot=1,
    )
    entry = TaskEntry(name="toy", tasks=("toy",), protocol="lm-eval", metric="acc")
    with pytest.raises(AssetError, match="an example of toy cannot be asked: q is null"):
        task_part(asked, entry, tiny_tokenizer(), max_length=512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sentence2": None}, "sentence2 is null"),
        ({"label": None}, "label is null"),
        ({"unread": None}, ""),
    ],
)
def test_a_null_field_of_our_own_tasks_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    from streamline.evaluation.tasks import documents

    rows = [{"sentence1": f"a {i}", "sentence2": "b", "label": 1, "unread": ""} for i in range(3)]
    rows[1] |= changes
    monkeypatch.setattr(documents, "load_questions", lambda _: Dataset.from_list(rows))

    def built() -> Any:
        tasks = resolve(["streamline_cmnli"])
        return build(tasks, tiny_tokenizer(), max_length=512, source="hub")

    if not words:
        assert built()[0].n_docs == 3
        return
    with pytest.raises(AssetError, match=f"question 1 of .*cmnli.* cannot be asked .*{words}"):
        built()


@pytest.mark.parametrize(
    ("name", "brought", "again", "words"),
    [
        ("toy", True, [0, 1, 2, 3], "question 4 of toy is there twice: 8 questions are 4"),
        ("toy", False, [0, 1, 2, 3], "question 4 of toy is there twice: 8 questions are 4"),
        ("toy", True, [2], None),
        ("toy", False, [2], None),
        ("piqa", False, [2], "question 4 of piqa is there twice: 5 questions are 4 different"),
        ("piqa", True, [2], None),
    ],
)
def test_questions_that_are_there_twice(
    caplog: pytest.LogCaptureFixture, name: str, brought: bool, again: list[int], words: str | None
) -> None:
    """A set with everything twice, of any origin; single ones where it is known to have none."""
    docs: Rows = [{"q": f"why {i}", "options": ["so", "no"], "gold": 0} for i in range(4)]
    entry = TaskEntry(
        name=name,
        tasks=(name,),
        protocol="lm-eval",
        metric="acc",
        folder="/mine" if brought else None,
    )
    asked = make([*docs, *(docs[i] for i in again)], task=name)
    if words is not None:
        with pytest.raises(AssetError, match=words):
            task_part(asked, entry, tiny_tokenizer(), max_length=512)
        return
    assert task_part(asked, entry, tiny_tokenizer(), max_length=512).n_docs == 5
    said = f"{name}: 1 of its 5 questions are there before, the first is question 4"
    assert (said in caplog.text) == brought
