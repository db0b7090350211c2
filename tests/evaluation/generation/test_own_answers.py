"""A model's own answers against its plain ``generate``, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import DAMAGES
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError, NotFiniteError, UnsupportedModelError
from streamline.evaluation.generation import own_answers as module
from streamline.evaluation.generation.own_answers import OwnAnswers, own_answers
from streamline.evaluation.generation.prompts import Prompt
from streamline.sources.instructions import prompt_text
from streamline.testing.models import tiny_model
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation
from streamline.training.lora import LoraRecipe, fine_tune

DATA = torch.randint(0, 256, (5, 16), generator=torch.Generator().manual_seed(0))
EXAMPLES = [
    {"instruction": "Add.", "input": "2 3", "output": "5"},
    {"instruction": "Say it.", "output": "it"},
    {"instruction": "Never " * 60, "output": "so"},
]


def asked(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: Any = None,
    *,
    data: Any = DATA,
    seed: int = 0,
    length: int = 300,
    **settings: Any,
) -> OwnAnswers:
    wanted = DistillationSettings.model_validate({"own_answers": 6, **settings})
    return own_answers(
        Decoder(model), "key", data, tokenizer, wanted, length=length, seed=seed, folder=folder
    )


@torch.no_grad()
def plain(model: PreTrainedModel, ids: Tensor, new: int) -> list[int]:
    given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 256}
    out = model.generate(ids, do_sample=False, max_new_tokens=new, **given)
    return out[0].tolist()  # type: ignore[no-any-return]


def rows(found: OwnAnswers) -> list[list[int]]:
    own = found.sequences
    return [ids[:n].tolist() for ids, n in zip(own.ids, own.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_likeliest_answers_are_those_of_plain_generate(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family, n_layers=3)
    text = asked(model, tmp_path, tokenizer, own_temperature=0)
    assert rows(text) == [plain(model, ids[None, :10], 6) for ids in DATA]
    assert text.sequences.first.tolist() == [10] * len(DATA) and text.sequences.packed
    told = asked(model, tmp_path, tokenizer, data=EXAMPLES, own_temperature=0)
    prompts = [tokenizer(prompt_text(one)).input_ids for one in EXAMPLES[:2]]
    assert rows(told) == [plain(model, torch.tensor([ids]), 6) for ids in prompts]
    assert told.sequences.first.tolist() == list(map(len, prompts)) and not told.sequences.packed
    short = asked(model, tmp_path, tokenizer, data=EXAMPLES[:1], length=len(prompts[0]) + 2)
    assert int(short.sequences.lengths[0]) <= len(prompts[0]) + 2


def test_an_answer_ends_with_the_models_end_token(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=3)
    first = rows(asked(model, tmp_path, own_temperature=0))[0]
    model.generation_config.eos_token_id = first[11]
    ended = asked(model, tmp_path, own_temperature=0)
    end = first.index(first[11], 10)
    assert rows(ended)[0] == first[: end + 1] and ended.sequences.ids.shape == DATA.shape


def test_draws_follow_the_distribution_and_the_seed_alone(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
        whole = torch.softmax(model(DATA[:1, :15]).logits[0, -1].double() / 0.7, -1)
    data = DATA[:1].expand(1_000, -1)
    options = {"own_answers": 1, "own_temperature": 0.7}
    found = asked(model, tmp_path, data=data, **options)
    counts = torch.bincount(found.sequences.ids[:, 15], minlength=len(whole)) / len(data)
    far = float((counts - whole).abs().sum())
    assert far < 0.3 < 0.8 < float((counts - 1 / len(whole)).abs().sum()), far
    few = data[:70]
    again = asked(model, tmp_path / "again", data=few, **options)
    assert rows(again) == rows(found)[:70]  # whatever is drawn beside them
    other = asked(model, tmp_path, data=few, seed=1, **options)
    assert rows(other) != rows(again)


def test_places_of_a_distribution_are_its_tokens_laid_end_to_end() -> None:
    from streamline.engine.head import drawn

    decoder = Decoder(tiny_model("llama", n_layers=1))
    hidden = torch.randn(1, decoder.hidden_size, generator=torch.Generator().manual_seed(0))
    likely = torch.softmax(decoder.leave(hidden).double() / 2, -1)[0]
    ends = likely.cumsum(0)
    for token in (0, 1, 100, len(likely) - 1):
        for place in (ends[token] - 0.9 * likely[token], ends[token] - 0.1 * likely[token]):
            found = drawn(decoder, hidden, torch.tensor([2.0]), place[None])
            assert found.tolist() == [token]
    last = drawn(
        decoder, hidden, torch.tensor([2.0]), torch.tensor([1 - 2.0**-32], dtype=torch.float64)
    )
    assert last.tolist() == [len(likely) - 1]
    cold = drawn(decoder, hidden, torch.tensor([0.0]), torch.tensor([0.9], dtype=torch.float64))
    assert cold.tolist() == [int(likely.argmax())]
    places = [Prompt((1,), (), 4, 1.0, seed).place(i) for seed in range(40) for i in range(40)]
    assert len(set(places)) == 1_600 and 0.45 < sum(places) / 1_600 < 0.55


def test_a_killed_writing_goes_on_and_what_is_there_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", n_layers=3)
    whole = asked(model, tmp_path / "whole")
    written = list[int]()
    original = module._Kept.add

    class Killed(BaseException):
        pass

    def dying(self: Any, index: int, tokens: list[int]) -> None:
        original(self, index, tokens)
        written.append(index)
        if len(written) == 2:
            raise Killed

    monkeypatch.setattr(module, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(module, "_TIMES", -1e9)
    monkeypatch.setattr(module._Kept, "add", dying)
    with pytest.raises(Killed):
        asked(model, tmp_path / "killed")
    found = asked(model, tmp_path / "killed")
    assert sorted(written) == list(range(len(DATA)))
    assert rows(found) == rows(whole) and found.seconds > 0
    again = asked(model, tmp_path / "killed")
    assert len(written) == len(DATA) and again.seconds == found.seconds
    assert again.summary() == found.summary()
    assert again.summary()["sha256"] == whole.summary()["sha256"]


def test_damaged_answers_are_written_again(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    whole = asked(model, tmp_path)
    (file,) = (tmp_path / "own-answers").iterdir()
    for damage in DAMAGES.values():
        damage(file)
        assert rows(asked(model, tmp_path)) == rows(whole)


def test_another_model_prompt_temperature_or_length_has_other_answers(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    asked(model, tmp_path)
    for n, changes in enumerate(
        ({"own_temperature": 2.0}, {"own_answers": 5}, {"data": DATA[:4]}, {"seed": 3}), 2
    ):
        asked(model, tmp_path, **changes)
        assert len(list((tmp_path / "own-answers").iterdir())) == n
    asked(model, tmp_path, temperature=3.0, top_k=5)  # how it is learnt decides none of them
    assert len(list((tmp_path / "own-answers").iterdir())) == 5


def test_what_cannot_be_answered_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama", n_layers=2)
    with pytest.raises(ConfigError, match="own_answers is 16, and a sequence has 16 .* at most 15"):
        asked(model, tmp_path, own_answers=16)
    with pytest.raises(ConfigError, match="none of 3 instructions leaves room .* within 20 tokens"):
        asked(model, tmp_path, tokenizer, data=EXAMPLES, length=20)
    model.config.alibi = True
    with pytest.raises(
        UnsupportedModelError, match="no mask but its own; leave out kd.own_answers"
    ):
        asked(model, tmp_path)
    model.config.alibi = False
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"own answers: the logits of a new token .* layer 1"):
        asked(model, tmp_path)


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_a_dense_model_learns_nothing_from_its_own_answers(heat: float, tmp_path: Path) -> None:
    dense = tiny_model("llama", n_layers=3)
    found = asked(dense, tmp_path, own_temperature=heat)
    ids, scored = found.sequences.part(torch.arange(len(DATA)))
    wanted = torch.zeros_like(scored)
    for row, (first, n) in enumerate(
        zip(found.sequences.first, found.sequences.lengths, strict=True)
    ):
        wanted[row, first:n] = True
    assert torch.equal(scored, wanted) and 0 < int(scored.sum()) <= 6 * len(DATA)
    student = assemble(dense_path(Decoder(dense)))
    taught = Distillation(Decoder(dense), "dense", DistillationSettings(trainees="all"))
    recipe = LoraRecipe(batch=2, length=16, epochs=2, learning_rate=1e-2)
    result = fine_tune(student, found.sequences, preset=recipe, distillation=taught)
    assert [row["train_loss"] for row in result.losses] == [0] * result.n_steps
    assert result.tokens == 2 * int(found.sequences.lengths.sum())


def test_settings_without_own_answers_are_as_they_were() -> None:
    plain_settings = DistillationSettings(own_temperature=2.0)
    assert "own" not in json.dumps(plain_settings.model_dump())
    own = DistillationSettings(own_answers=8)
    assert DistillationSettings.model_validate(own.model_dump()) == own
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DistillationSettings(own_answers=0)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DistillationSettings(own_temperature=-1.0)
