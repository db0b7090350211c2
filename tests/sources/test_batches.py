from __future__ import annotations

import pytest
import torch

from streamline.errors import ConfigError
from streamline.sources.batches import token_batches
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
    with pytest.raises(ConfigError, match=r"too few for 9 sequences of 50: ask for at most 0"):
        token_batches(["short"], tiny_tokenizer(), n_samples=9, length=50, seed=0)
