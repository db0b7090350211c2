from __future__ import annotations

import pytest
import torch
from families import THREE
from transformers import PreTrainedTokenizerFast

from streamline.errors import UnknownNameError
from streamline.testing.models import VOCAB_SIZE, tiny_model


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("tied", [False, True])
def test_tiny_models_run_and_are_tied_as_given(family: str, tied: bool) -> None:
    model = tiny_model(family, n_layers=3, tied=tied)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    with torch.no_grad():
        logits = model(torch.arange(6)[None]).logits
    assert logits.shape == (1, 6, VOCAB_SIZE)
    assert logits.isfinite().all()
    assert logits.std() > 0.3, "a model whose logits hardly differ would hide mistakes"


def test_a_seed_makes_the_weights_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = (tiny_model("llama", seed=seed) for seed in (1, 1, 2))
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownNameError, match="'llamma'; choose one of: .*llama"):
        tiny_model("llamma")


def test_the_tokenizer_keeps_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Grüße, 世界!\n\ttab  two"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        256,
        257,
        258,
    )
    assert len(tokenizer) <= VOCAB_SIZE
