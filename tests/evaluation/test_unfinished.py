"""A killed evaluation goes on where it was: no batch is run twice, no number changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import DAMAGES

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.evaluate import evaluate
from streamline.evaluation.questions import Questions, Text, prepare
from streamline.evaluation.scoring import unfinished
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.progress import Silent
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Steps(Silent):
    """Notes the tokens of each stage and is killed after some batches."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.calls, self.kill_after, self.total = 0, kill_after, 0

    def step(self, done: int, total: int, text: str = "") -> None:
        self.calls += 1
        self.total = total
        if self.calls == self.kill_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    folder = tmp_path_factory.mktemp("data")
    (folder / "piqa").mkdir()
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"a box of {i}", "sol2": "no", "label": i % 2}
        for i in range(12)
    ]
    (folder / "piqa" / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokens = torch.randint(0, 256, (9, 32), generator=torch.Generator().manual_seed(0))
    heldout = Text("heldout", tokens, {"window": 32})
    return prepare(["piqa"], TOKENIZER, max_length=512, data_dir=folder, heldout=heldout)


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    dropped = Pruned(Plan.drop(4, [2])).path(decoder, "short")
    return {"dense-key": dense_path(decoder), "short-key": dropped}


def numbers(results: dict[str, Any]) -> list[Any]:
    return [(r.tasks, r.perplexity, r.samples.to_json()) for r in results.values()]


def test_what_was_scored_before_a_kill_is_not_scored_again(paths, questions, tmp_path, monkeypatch):
    def run(folder: Path, progress: Steps) -> list[Any]:
        store, budget = AnswerStore(folder), TokenBudget(64)
        return numbers(
            evaluate(paths, questions, TOKENIZER, store, batch_tokens=budget, progress=progress)
        )

    whole = Steps()
    expected = run(tmp_path / "whole", whole)
    assert whole.calls > 8
    monkeypatch.setattr(unfinished, "SAVE_EVERY_S", 0.0)
    for kill_after in range(1, whole.calls):
        folder = tmp_path / str(kill_after)
        with pytest.raises(KeyboardInterrupt):
            run(folder, Steps(kill_after))
        again = Steps()
        assert run(folder, again) == expected
        assert again.calls == whole.calls - kill_after, "finished batches must not be run again"
        assert not list(folder.rglob("*.part.*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_scored_again(paths, questions, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(unfinished, "SAVE_EVERY_S", 0.0)
    store, budget = AnswerStore(tmp_path), TokenBudget(64)
    expected = numbers(
        evaluate(paths, questions, TOKENIZER, AnswerStore(tmp_path / "whole"), batch_tokens=budget)
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate(paths, questions, TOKENIZER, store, batch_tokens=budget, progress=Steps(4))
    files = sorted(tmp_path.rglob("*.part.safetensors"))
    assert len(files) == 2
    DAMAGES[damage](files[0])
    found = evaluate(paths, questions, TOKENIZER, store, batch_tokens=budget)
    assert numbers(found) == expected
