"""Data sets that a task's own YAML names on the hub are read at one commit, which is in the key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from streamline.evaluation import origins
from streamline.evaluation.building import build
from streamline.evaluation.origins import find_origins
from streamline.evaluation.tasks.catalogue import resolve
from streamline.evaluation.tasks.declared import declared
from streamline.hashing import content_key
from streamline.testing.models import tiny_tokenizer

_YAML = """task: {name}
dataset_path: {path}
{more}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
_GROUP = """group: mine
task:
  - sums
  - riddles
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A group of two tasks: of one set on the hub at a tag, and of another at its main branch."""
    kwargs = 'dataset_kwargs: {revision: v1, field: "rows"}\ndataset_name: small'
    tasks = {"sums": ("some/sums", kwargs), "riddles": ("riddles", "tag: hard")}
    for name, (path, more) in tasks.items():
        text = _YAML.format(name=name, path=path, more=more)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(_GROUP, encoding="utf-8")
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """The commits that the hub has, by repository and revision."""
    commits = {("some/sums", "v1"): "a" * 40, ("riddles", "main"): "b" * 40}

    def commit(repository: str, config: str | None, revision: str) -> str | None:
        if revision in commits.values():
            return revision
        return commits.get((repository, revision))

    monkeypatch.setattr(origins, "dataset_commit", commit)
    return commits


def _content(folder: Path, name: str, **kept: Any) -> Any:
    (entry,) = resolve([name], folder)
    return find_origins([entry], **kept).content(entry)


def test_each_set_of_a_group_has_its_commit(folder: Path, hub: dict[tuple[str, str], str]):
    found = find_origins(resolve(["mine", "sums", "riddles"], folder)).found
    places = {name: (one.kind, one.location, one.revision) for name, one in found.items()}
    first, second = ("some/sums:small@v1", "a" * 40), ("riddles", "b" * 40)
    assert places["sums"] == ("hub", *first)
    assert places["riddles"] == ("hub", *second)
    assert places["mine"] == ("hub", f"{second[0]}, {first[0]}", f"{second[1]}, {first[1]}")


def test_a_moved_branch_is_another_key_and_a_kept_commit_the_same(
    folder: Path, hub: dict[tuple[str, str], str]
):
    before, sums = _content(folder, "mine"), _content(folder, "sums")
    kept = find_origins(resolve(["mine"], folder)).to_json()
    hub["riddles", "main"] = "c" * 40
    assert _content(folder, "sums") == sums
    assert _content(folder, "mine") != before
    hub["other", "main"] = "b" * 40  # the old commit is still to be had
    assert _content(folder, "mine", kept=kept) == before
    del hub["other", "main"]
    gone = find_origins(resolve(["mine"], folder), kept=kept)
    assert "which cannot be had now" in gone.missing["mine"]


def test_they_are_read_at_their_commits_with_what_else_the_yaml_says(
    folder: Path, hub: dict[tuple[str, str], str], monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, str | None, dict[str, Any]]] = []
    row = {"question": "2 and 2?", "options": ["4", "5"], "answer": 0}
    rows = datasets.DatasetDict({"test": datasets.Dataset.from_list([row])})
    made = SimpleNamespace(
        cache_dir=folder, download_and_prepare=lambda: None, as_dataset=lambda split: rows
    )

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append((path, name, options))
        return rows

    def load_dataset_builder(path: str, name: str | None, **options: Any) -> Any:
        asked.append((path, name, options))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    entries = resolve(["mine"], folder)
    parts = build(entries, tiny_tokenizer(), max_length=64, found=find_origins(entries).found)
    assert sorted(part.name for part in parts) == ["riddles", "sums"]
    assert sorted(asked, key=lambda one: one[0]) == [
        ("riddles", None, {"revision": "b" * 40}),
        ("some/sums", "small", {"split": None, "revision": "a" * 40, "field": "rows"}),
    ]
    assert datasets.load_dataset is load_dataset


def test_no_key_has_the_place_of_lm_eval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins, "dataset_commit", lambda *_: None)
    for name in ("blimp", "sciq", "arithmetic_1dc", "ruler"):
        (entry,) = resolve([name])
        found = find_origins([entry])
        for known in (found.content(entry), found.to_json()):
            assert "site-packages" not in json.dumps(known), name
            assert "lm_eval" not in json.dumps(known), name


def test_groups_and_tags_of_lm_eval_lead_to_their_sets():
    found = {name: declared(name) for name in ("blimp", "mmlu_stem")}
    names = {name: {data.repository for data in one.data} for name, one in found.items() if one}
    assert names == {"blimp": {"nyu-mll/blimp"}, "mmlu_stem": {"cais/mmlu"}}


def test_packaged_data_have_no_task_of_lm_eval():
    found = find_origins(resolve(["sciq"]), source="packaged")
    assert "no packaged questions" in found.missing["sciq"]


#: How a YAML may name the file ``set/deep/test.jsonl``.
_WAYS = {
    "a file": ("json", "data_files: {test: set/deep/test.jsonl}"),
    "a pattern": ("json", "data_files: {test: set/*/*.jsonl}"),
    "a pattern at any depth": ("json", "data_files: [set/**]"),
    "an absolute pattern": ("json", "data_files: {here}/set/deep/t*"),
    "a folder": ("./set", ""),
    "a folder, absolute": ("{here}/set", ""),
    "a pattern in a folder": ("set", "data_files: deep/test.*"),
    "a folder of a form": ("json", "data_dir: set/deep"),
    "a pattern in the folder of a form": ("json", "data_dir: set, data_files: {test: '*/*'}"),
}


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("included", [False, True])
def test_questions_are_in_the_key_by_content_however_a_yaml_names_them(
    way: str, included: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    questions = tmp_path / "set" / "deep" / "test.jsonl"
    questions.parent.mkdir(parents=True)
    questions.write_text('{"question": "one"}')
    (tmp_path / "unread.jsonl").write_text("{}")
    path, arguments = (text.replace("{here}", str(tmp_path)) for text in _WAYS[way])
    text = _YAML.format(name="sums", path=path, more=f"dataset_kwargs: {{{arguments}}}")
    own = tmp_path / "yaml"
    own.mkdir()
    base = tmp_path / "base" / "base.yaml"
    if included:
        base.parent.mkdir()
        base.write_text(text.replace("task: sums\n", ""))
        text = "include: ../base/base.yaml\ntask: sums\n"
    (own / "sums.yaml").write_text(text)

    def key() -> str:
        return content_key(_content(own, "sums"))

    keys = [key()]
    (tmp_path / "unread.jsonl").write_text("{ }")
    assert key() == keys[0]
    questions.write_text('{"question": "two"}')
    keys.append(key())
    if included:
        base.write_text(base.read_text().replace("question", "questions"))
        keys.append(key())
    assert len(set(keys)) == len(keys)
