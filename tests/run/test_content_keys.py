"""What decides a number is in a cell's key by content: the same command after a change redoes it.

Each test changes what a path holds and leaves the path, runs the same command again in the same
folder, and compares with a fresh folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline import hashing
from streamline.baselines import _sizes
from streamline.evaluation import evaluate as evaluation
from streamline.progress import Silent
from streamline.run import inputs, model_run
from streamline.run.cell import cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.inputs import settle, shared_inputs
from streamline.run.pipeline import run
from streamline.sources.hub import own_code
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training.state import TrainingState


@pytest.fixture
def mine(place: Path, tmp_path: Path) -> Path:
    """A copy of model, text and questions that a test may change."""
    return Path(shutil.copytree(place, tmp_path / "mine"))


@pytest.fixture
def settings(config: Callable[..., RunConfig], mine: Path, tmp_path: Path) -> Any:
    """``settings(name, **changes)``: a run of the copy into a folder of that name."""
    text = str(mine / "text.jsonl")

    def build(name: str, **changes: Any) -> RunConfig:
        fields = {
            "models": str(mine / "model"),
            "methods": "shortgpt",
            "data_dir": mine / "data",
            "calibration": {"texts": text, "n_samples": 4, "length": 16},
            "perplexity": {"texts": text, "n_tokens": 64, "length": 16},
            **changes,
        }
        return config(tmp_path / name, **fields)

    return build


def _same_length(file: Path, change: Callable[[str], str]) -> None:
    """Change a file's content and keep its size and time, as ``cp -p`` of another file does."""
    before, text = file.stat(), file.read_text()
    changed = change(text)
    assert changed != text and len(changed) == len(text)
    file.write_text(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _calibration(mine: Path) -> None:
    _same_length(mine / "text.jsonl", lambda text: text.replace("quick", "quite"))


def _questions(mine: Path) -> None:
    file = mine / "data" / "piqa" / "dev.jsonl"
    _same_length(file, lambda text: text.replace("leave it", "eat it!!"))


def _labels(mine: Path) -> None:
    file = mine / "data" / "piqa" / "dev.jsonl"
    _same_length(file, lambda text: text.replace('"label": 1', '"label": 0'))


def _tokenizer(mine: Path) -> None:
    file = mine / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"} if not content["normalizer"] else None
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [_calibration, _questions, _labels])
def test_what_a_path_holds_decides_and_not_the_path(mine, settings, numbers, change):
    first = run(settings("out"))
    change(mine)
    again, fresh = run(settings("out")), run(settings("fresh"))
    assert [record.key for record in again] == [record.key for record in fresh]
    assert {record.key for record in again}.isdisjoint(record.key for record in first)
    assert numbers(again) == numbers(fresh)


def test_what_is_moved_is_the_same(mine, settings, tmp_path):
    first = run(settings("out"))
    moved = mine.rename(tmp_path / "moved")
    text = str(moved / "text.jsonl")
    again = settings(
        "out",
        data_dir=moved / "data",
        models=str(mine / "model"),
        calibration={"texts": text, "n_samples": 4, "length": 16},
        perplexity={"texts": text, "n_tokens": 64, "length": 16},
    )
    shutil.copytree(moved / "model", mine / "model")
    assert [record.key for record in run(again)] == [record.key for record in first]


def test_labels_in_a_file_of_their_own_are_part_of_the_questions(mine, settings):
    folder = mine / "data" / "piqa"
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    (folder / "dev-labels.lst").write_text("\n".join("0" for row in rows if row.pop("label") < 2))
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [dense, _] = run(settings("out"))
    _same_length(folder / "dev-labels.lst", lambda text: text.translate(str.maketrans("01", "10")))
    [other, _] = run(settings("out"))
    assert other.tasks["piqa"].value == pytest.approx(1 - dense.tasks["piqa"].value)


@pytest.mark.parametrize("named", ["json {test: elsewhere/*.jsonl}", "./elsewhere null"])
def test_what_a_tasks_yaml_names_is_part_of_its_questions(
    mine, settings, tmp_path, monkeypatch, named
):
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"{i} and {i}?", "options": ["few", f"{2 * i}"], "a": 1} for i in range(6)]
    questions = tmp_path / "elsewhere" / "test.jsonl"
    path, files = named.split(" ", 1)
    questions.parent.mkdir()
    questions.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "sums.yaml").write_text(
        f"task: sums\ndataset_path: {path}\ndataset_kwargs:\n  data_files: {files}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
        'doc_to_choice: "{{options}}"\ndoc_to_target: "{{a}}"\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    fields = {"methods": "dense", "tasks": "sums", "include_path": tmp_path / "yaml"}
    [before] = run(settings("out", **fields))
    _same_length(questions, lambda text: text.replace('"a": 1', '"a": 0'))
    [after] = run(settings("out", **fields))
    assert after.tasks["sums"].value == pytest.approx(1 - before.tasks["sums"].value)


@pytest.mark.parametrize("block", ["calibration", "training", "lora", "perplexity"])
def test_every_text_of_a_run_is_in_the_key(block, mine, settings):
    other = Path(shutil.copy(mine / "text.jsonl", mine / "other.jsonl"))
    changes = {block: {"texts": str(other)}, "recovery": "lora,kd"}
    config = settings("out", methods="llm-streamline-layer", **changes)

    def keys() -> list[str]:
        cells = expand(config, config.models[0])
        shared = shared_inputs(config, "fingerprint", settle(config))
        return [cell_job(cell, shared).key for cell in cells]

    before = keys()
    _same_length(other, lambda text: text.replace("quick", "quite"))
    changed = [a != b for a, b in zip(before, keys(), strict=True)]
    assert changed == [block == "perplexity", True, True]


def test_nothing_that_another_way_of_computing_has_kept_is_gone_on_with(settings, monkeypatch):
    trained: list[str] = []
    update = TrainingState.update

    def counted(self: TrainingState, *given: Any) -> None:
        trained.append(self.label)
        update(self, *given)

    monkeypatch.setattr(TrainingState, "update", counted)
    fields = {"methods": "llm-streamline-layer", "recovery": "lora", "lora": {"n_tokens": 256}}
    said: list[str] = []

    class Shown(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    with monkeypatch.context() as before:
        for module in (hashing, inputs):
            before.setattr(module, "FORMAT", hashing.FORMAT - 1)
        run(settings("run", **fields))
    first = [trained.pop(0) for _ in list(trained)]
    run(settings("run", **fields), Shown())
    assert trained == first and len(set(first)) == 2, "both trainings are made anew"
    assert any(line.startswith("changed: this project's way of computing: done") for line in said)
    assert len(list((settings("run").out / "cache" / "calibration").iterdir())) == 2


def test_a_cache_rounds_what_it_keeps_and_its_size_decides_nothing(settings):
    def key(cache_bytes: int) -> str:
        config = settings("out", training={"n_tokens": 256, "cache_bytes": cache_bytes})
        cells = expand(config, config.models[0])
        shared = shared_inputs(config, "fingerprint", settle(config))
        return cell_job(cells[1], shared).key

    assert key(0) != key(10**6) == key(10**9)


def test_a_kept_answer_belongs_to_its_question(mine, settings, numbers, monkeypatch):
    """Stopped between answers and records; then the questions change and the run goes on."""

    class Killed(BaseException):
        pass

    def dies(*args: Any, **options: Any) -> Any:
        evaluation.evaluate(*args, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(model_run, "evaluate", dies)
        with pytest.raises(Killed):
            run(settings("out"))
    _questions(mine)
    again, fresh = run(settings("out")), run(settings("fresh"))
    assert numbers(again) == numbers(fresh)
    assert again[0].notes["data"] == fresh[0].notes["data"]


def test_what_is_asked_besides_leaves_the_answers_that_are_there(mine, settings, monkeypatch):
    run(settings("out", methods="dense"))
    asked: list[list[str]] = []
    original = evaluation.answer_all

    def watched(paths: Any, parts: Any, texts: Any, **options: Any) -> Any:
        asked.append([requests[0].task for requests in parts] + ["text"] * len(texts))
        return original(paths, parts, texts, **options)

    monkeypatch.setattr(evaluation, "answer_all", watched)
    more = {"methods": "dense", "tasks": "piqa,streamline_piqa"}
    [record] = run(settings("out", **more))
    assert asked == [["streamline_piqa"]] and list(record.tasks) == ["piqa", "streamline_piqa"]


def test_another_tokenizer_is_another_model(mine, settings, numbers):
    first = run(settings("out"))
    _tokenizer(mine)
    again = run(settings("out"))
    assert {record.key for record in again}.isdisjoint(record.key for record in first)


_PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Mine(DepthMethod):
    """Chooses fixed layers."""

    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"

    def select(self, calibration, n_remove):
        return Plan.drop(calibration.n_layers, {layers})
'''


def test_the_source_of_a_method_is_part_of_its_key(settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "mymethod.py"
    found = []
    for layers in ("range(n_remove)", "range(6 - n_remove, 6)"):
        file.write_text(_PLUGIN.replace("{layers}", layers))
        sys.modules.pop("mymethod", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        found.append(run(settings("out", methods="mymethod:Mine"))[1].plan.removed_layers)
    assert found[0] != found[1]


@pytest.mark.parametrize("named", [True, False], ids=["named", "chosen"])
def test_a_model_that_a_method_loads_is_known_by_its_content(named, mine, settings, monkeypatch):
    small = mine / "small"
    monkeypatch.setattr(_sizes, "LADDERS", ((str(mine / "model"), str(small)),))
    method = f"smaller-dense+model={small}" if named else "smaller-dense"

    def keep(seed: int) -> None:
        tiny_model("llama", n_layers=2, seed=seed).save_pretrained(small)
        tiny_tokenizer().save_pretrained(small)

    keep(1)
    first = run(settings("out", methods=method))
    keep(2)
    again = run(settings("out", methods=method))
    assert again[1].status == "ok" and again[1].key != first[1].key
    assert again[1].summary.perplexity != first[1].summary.perplexity
    assert again[0].key == first[0].key


def test_a_run_keeps_to_the_commits_of_what_methods_choose_to_load(settings, monkeypatch):
    monkeypatch.setattr(own_code, "model_commit", lambda name, _: f"commit of {name}")
    config = settings(
        "out",
        models="opt-6.7b,opt-13b",
        methods="dense,smaller-dense,smaller-dense+model=opt-125m",
        sparsities="0.25,0.8",
    )
    assert settle(config).models == {
        f"facebook/opt-{size}": f"commit of facebook/opt-{size}"
        for size in ("6.7b", "13b", "2.7b", "1.3b", "125m")
    }
