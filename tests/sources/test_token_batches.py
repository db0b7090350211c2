from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamline.sources.token_batches import TokenBatches
from streamline.testing.models import tiny_tokenizer


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
