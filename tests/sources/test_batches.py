from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamline.errors import ConfigError
from streamline.sources.batches import TokenBatches, token_batches
from streamline.testing.models import tiny_tokenizer


def test_token_batches_hold_every_document_once_in_order():
    tokenizer = tiny_tokenizer()
    texts = ["one text", "and another one", "a third"]
    stream = [i for t in texts for i in [*tokenizer(t).input_ids, tokenizer.eos_token_id]]
    n = len(stream) // 4
    found = token_batches(texts, tokenizer, n_samples=n, length=4, seed=3)
    pieces = {tuple(stream[i : i + 4]) for i in range(0, 4 * n, 4)}
    assert found.shape == (n, 4)
    assert {tuple(row) for row in found.tolist()} == pieces


def test_token_batches_follow_the_seed():
    tokenizer = tiny_tokenizer()
    texts = ["some words that are long enough to be cut into many pieces"] * 4

    def draw(seed: int) -> torch.Tensor:
        return token_batches(texts, tokenizer, n_samples=5, length=6, seed=seed)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_too_little_text_is_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match=r"too few for 9 sequences of 50: use at most 0"):
        token_batches(["short"], tiny_tokenizer(), n_samples=9, length=50, seed=0)


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"the {i} fox ran {i}"}) for i in range(300)))
    return str(file)


@pytest.fixture
def batches() -> TokenBatches:
    return TokenBatches(tiny_tokenizer())


def test_equal_arguments_give_the_same_tensor_and_are_recorded_by_content(batches, text):
    one = batches.tokens(text, n_samples=4, length=16, seed=0)
    assert one.shape == (4, 16) and one.dtype == torch.int64
    assert batches.tokens(text, n_samples=4, length=16, seed=0) is one
    other = batches.tokens(text, n_samples=4, length=16, seed=1)
    assert not torch.equal(one, other)
    assert set(batches.facts()) == {f"{text}/train/4/16/0", f"{text}/train/4/16/1"}
    assert len(set(batches.facts().values())) == 2


def test_no_sequence_is_in_training_and_validation(batches, text):
    train, validation = batches.training(
        text, n_tokens=100, validation_tokens=40, length=16, seed=0
    )
    assert (train.shape, validation.shape) == ((6, 16), (2, 16))
    whole = batches.tokens(text, n_samples=8, length=16, seed=0)
    assert torch.equal(torch.cat([train, validation]), whole)


def test_validation_of_fine_tuning_is_rounded_up_or_left_out(batches, text):
    sizes = {"n_tokens": 64, "length": 16, "seed": 0}
    train, validation = batches.fine_tuning(text, validation_tokens=17, **sizes)
    assert (len(train), len(validation)) == (4, 2)
    assert batches.fine_tuning(text, validation_tokens=0, **sizes)[1] is None
