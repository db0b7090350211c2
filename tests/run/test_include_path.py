"""A user's own lm-eval YAML, from the flag to the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamline as sl
from streamline.errors import UnknownNameError
from streamline.evaluation.tasks.catalogue import resolve
from streamline.hashing import folder_key
from streamline.progress import Silent
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.pipeline import run
from streamline.testing.models import tiny_model, tiny_tokenizer

_YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks over one file of questions: a new name, and one that lm-eval has too."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [
        {"question": f"what is {i} and {i}?", "options": ["little", f"{2 * i}"], "answer": 1}
        for i in range(6)
    ]
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("my_sums", "piqa"):
        (folder / f"{name}.yaml").write_text(_YAML.format(name=name, file=file), encoding="utf-8")
    return folder


def _run(config: Callable[..., RunConfig], out: Path, folder: Path, **changes: Any) -> list[Record]:
    fields = {"tasks": "my_sums", "methods": "shortgpt", "include_path": folder, **changes}
    return run(config(out, **fields))


def test_a_task_of_ones_own_runs_and_its_files_are_in_the_key(
    config: Callable[..., RunConfig], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    dense, pruned = _run(config, out, folder, data="packaged", limit=4)
    assert (dense.status, pruned.status) == ("ok", "ok")
    result = pruned.tasks["my_sums"]
    assert (result.metric, result.n) == ("acc_norm", 4)
    assert dense.notes["data"]["sources"]["my_sums"]["source"] == str(folder)

    (folder / "questions.jsonl").touch()
    assert _run(config, out, folder, data="packaged", limit=4)[0].key == dense.key
    moved = folder.rename(tmp_path / "moved")
    for yaml in moved.glob("*.yaml"):
        yaml.write_text(yaml.read_text().replace(str(folder), str(moved)))
    changed = _run(config, out, moved, data="packaged", limit=4)
    assert changed[0].key != dense.key and changed[0].status == "ok"


def test_names_of_ones_own_win(folder: Path) -> None:
    ours, own = resolve(["piqa"]), resolve(["piqa"], folder)
    assert not ours[0].brings_data
    assert own[0].brings_data and own[0].folder == str(folder)
    assert [entry.name for entry in resolve(["commonsense"], folder)][:2] == ["piqa", "winogrande"]
    with pytest.raises(UnknownNameError, match="'my_sumz'. Did you mean: my_sums"):
        resolve(["my_sumz"], folder)


def test_a_folders_key_is_its_content(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "x.yaml").write_text("task: x")
        keys.append(folder_key(tmp_path / name))
    assert keys[0] == keys[1]
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert folder_key(tmp_path / "a") == keys[0]
    (tmp_path / "a" / "in" / "x.yaml").write_text("task: y")
    assert folder_key(tmp_path / "a") != keys[0]
    (tmp_path / "b" / "in" / "x.yaml").rename(tmp_path / "b" / "in" / "y.yaml")
    assert folder_key(tmp_path / "b") != keys[1]


def test_python_takes_the_folder_too(folder: Path) -> None:
    model, tokenizer = tiny_model("llama", n_layers=2), tiny_tokenizer()
    asked = {"limit": 3, "include_path": folder, "perplexity": 0, "progress": Silent()}
    result = sl.evaluate(model, tokenizer, "my_sums", **asked)
    (record,) = result.values()
    assert (record.tasks["my_sums"].metric, record.tasks["my_sums"].n) == ("acc_norm", 3)
