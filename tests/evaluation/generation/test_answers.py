"""A task's texts for many paths against lm-eval's ``hf`` model on each, one prompt at a time."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import DAMAGES
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from transformers import PreTrainedTokenizerFast

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.errors import NotFiniteError
from streamline.evaluation.generation import answers as generation_answers
from streamline.evaluation.generation import shards as generation_shares
from streamline.evaluation.generation.answers import answer_texts
from streamline.evaluation.generation.engine import generate as generate_together
from streamline.evaluation.harness import (
    continuations,
    generate,
    task_part,
    text_of,
    unsupported_options,
)
from streamline.evaluation.part import Part
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.kept import read_json, write_json
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.testing.models import tiny_model

ENTRY = TaskEntry(name="toy", tasks=("toy",), protocol="gen", metric="exact_match")


def part_of(tokenizer: PreTrainedTokenizerFast, n: int = 4, **settings: Any) -> Part:
    """Questions behind common examples; a text ends at "ab" or after seven tokens."""
    shots = "Question: how? Answer: so. " * 2
    docs = [{"q": f"{shots}Question: {'why ' * (i + 1)}?", "a": "no"} for i in range(n)]
    kwargs = {"until": ["ab", "Question:"], "max_gen_toks": 7, "do_sample": False} | settings
    config = {
        "task": "toy",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "target_delimiter": "",
        "generation_kwargs": kwargs,
        "metric_list": [{"metric": "exact_match"}],
        "metadata": {"version": 1},
    }
    return task_part(ConfigurableTask(config=config), ENTRY, tokenizer, max_length=512)


def paths_of(family: str = "llama") -> dict[str, LayerPath]:
    decoder = Decoder(tiny_model(family, n_layers=3, seed=4))
    dropped = Pruned(Plan.drop(3, (1,))).path(decoder, "dropped")
    return {"dense": dense_path(decoder), "dropped": dropped}


def files(folder: Path) -> dict[str, Path]:
    return {name: folder / name / "toy.texts.json" for name in ("dense", "dropped")}


def lm_eval(path: LayerPath, part: Part, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return generate(assemble(path), part, tokenizer, batch_size=1)


def test_texts_are_lm_evals(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    paths, told = paths_of(), []
    free = answer_texts(
        paths, part_of(tokenizer, until=[]), tokenizer, files=files(tmp_path / "free")
    )
    place = max(range(4), key=lambda i: len(free[0][i]))
    stop = free[0][place][1:3]  # what two tokens spell in the middle of a text
    part = part_of(tokenizer, until=["never", stop])
    found = answer_texts(
        paths, part, tokenizer, files=files(tmp_path), progress=lambda *step: told.append(step)
    )
    assert found == [lm_eval(path, part, tokenizer) for path in paths.values()]
    assert len(stop) == 2 and stop not in found[0][place]
    assert free[0][place].startswith(found[0][place])
    done = [step[0] for step in told]
    assert told[-1] == (8, 8) and done == sorted(done)
    assert any(number != int(number) for number in done)  # what is begun counts in part
    block, rows = finish(part, found[0])
    assert block["n"] == len(rows) == 4


class Overflowing(torch.nn.Module):
    """A layer whose output is infinite from some call on."""

    def __init__(self, layer: torch.nn.Module, calls: int) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls -= 1
        out = self.layer(hidden, *args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        return out if self.calls >= 0 else out * float("inf")


@pytest.mark.parametrize("calls", [0, 4])
def test_logits_that_are_not_finite_are_no_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, calls: int
) -> None:
    paths = paths_of()
    decoder = paths["dense"].decoder
    module = Overflowing(decoder.layers[1], calls)
    nodes = (*paths["dense"].nodes[:1], Node(module, 1), *paths["dense"].nodes[2:])
    paths = {"dense": paths["dense"], "dropped": LayerPath(decoder, nodes, "bad")}
    part = part_of(tokenizer, until=["never"])
    texts, error = answer_texts(paths, part, tokenizer, files=files(tmp_path))
    assert texts == lm_eval(paths["dense"], part, tokenizer)
    assert isinstance(error, NotFiniteError)
    assert re.match(r"toy: the logits of a .* of question \d is not finite: .*layer 1", str(error))
    module.calls = calls
    assembled = assemble(paths["dropped"])
    with pytest.raises(NotFiniteError, match="toy: the logits of a generated token"):
        generate(assembled, part, tokenizer, batch_size=1)


def test_prompts_are_cut_on_the_left_like_lm_evals(tokenizer: PreTrainedTokenizerFast) -> None:
    (path, *_), part = paths_of().values(), part_of(tokenizer)
    prompts = continuations(part, tokenizer, max_length=70)
    assert max(len(prompt.tokens) for prompt in prompts) == 63
    texts = [""] * len(prompts)

    def written(_: int, index: int, tokens: list[int]) -> None:
        texts[index] = text_of(prompts[index], tokens, tokenizer)

    generate_together([path], prompts, tokenizer, written=written)
    assert texts == generate(path.decoder.model, part, tokenizer, batch_size=1, max_length=70)


def test_prompts_keep_the_order_of_the_requests(tokenizer: PreTrainedTokenizerFast) -> None:
    part = part_of(tokenizer)
    prompts = continuations(part, tokenizer, max_length=512)
    assert [tokenizer.decode(p.tokens) for p in prompts] == [i.args[0] for i in part.instances]
    assert {p.stops for p in prompts} == {("ab", "Question:", "</s>")}
    assert {p.max_new_tokens for p in prompts} == {7}


def test_a_killed_run_goes_on(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, part = paths_of(), part_of(tokenizer)
    wanted = answer_texts(paths, part, tokenizer, files=files(tmp_path / "whole"))
    monkeypatch.setattr(generation_answers, "SAVE_EVERY_S", 0.0)
    asked: list[int] = []

    def dies(chosen: Any, prompts: Any, *rest: Any, written: Any, **more: Any) -> None:
        def once(path: int, prompt: int, tokens: list[int]) -> None:
            written(path, prompt, tokens)
            if len(asked) == 1 and path == 1:
                raise KeyboardInterrupt

        asked.append(len(prompts))
        generate_together(chosen, prompts, *rest, written=once, **more)

    monkeypatch.setattr(generation_shares, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        answer_texts(paths, part, tokenizer, files=files(tmp_path))
    kept = read_json(files(tmp_path)["dropped"])
    assert len(kept["texts"]) == 1
    assert answer_texts(paths, part, tokenizer, files=files(tmp_path)) == wanted
    n_kept = read_json(files(tmp_path)["dense"])["texts"]
    assert len(n_kept) == 4 and sum(asked[1:]) < 8
    monkeypatch.setattr(generation_shares, "generate", None)
    assert answer_texts(paths, part, tokenizer, files=files(tmp_path)) == wanted


def test_texts_of_other_questions_are_not_taken_up(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    paths, part = paths_of(), part_of(tokenizer, n=2)
    wanted = answer_texts(paths, part, tokenizer, files=files(tmp_path))
    stale = {"data_hash": "other", "texts": {"0": "stale"}}
    for file in files(tmp_path).values():
        write_json(file, stale)
    assert answer_texts(paths, part, tokenizer, files=files(tmp_path)) == wanted


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_texts_are_generated_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, damage: str
) -> None:
    paths, part = paths_of(), part_of(tokenizer, n=2)
    wanted = answer_texts(paths, part, tokenizer, files=files(tmp_path))
    file = files(tmp_path)["dropped"]
    DAMAGES[damage](file)
    assert answer_texts(paths, part, tokenizer, files=files(tmp_path)) == wanted
    assert file.with_name(f"{file.name}.damaged").exists() == (damage != "missing")


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bloom", {}, "dropped generates by itself for toy: its attention supports no mask"),
        ("llama", {"num_beams": 2}, "dropped generates by itself for toy: .* needs num_beams"),
    ],
)
def test_what_cannot_be_done_together_is_done_alone_and_named(
    family: str,
    settings: dict[str, Any],
    reason: str,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths, part = paths_of(family), part_of(tokenizer, n=2, **settings)
    assert (unsupported_options(part) is None) == (not settings)
    with caplog.at_level(logging.WARNING):
        found = answer_texts(paths, part, tokenizer, files=files(tmp_path))
    assert found == [lm_eval(path, part, tokenizer) for path in paths.values()]
    assert any(re.search(reason, message) for message in caplog.messages)
