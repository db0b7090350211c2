"""Sparsity to layers, by exact counts from configs alone."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from streamline.engine.budget import check_sparsity, layers_to_remove, removed_fraction
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.methods.replacement import added_parameters
from streamline.testing.models import tiny_config


@pytest.fixture(scope="module")
def llama2_7b() -> Decoder:
    """Llama-2-7B without weights."""
    return Decoder.from_config(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
        )
    )


def test_llama2_7b_counts(llama2_7b: Decoder) -> None:
    assert llama2_7b.n_parameters() == 6_738_415_616
    assert llama2_7b.layer_parameters(0) == 202_383_360


@pytest.mark.parametrize(
    ("kind", "n_layers", "percent"),
    [(None, 8, 24.03), ("ffn", 9, 25.04), ("layer", 9, 24.03), ("swiglu", 9, 25.02)],
)
def test_published_shares(
    llama2_7b: Decoder, kind: str | None, n_layers: int, percent: float
) -> None:
    added = (lambda n: 0) if kind is None else added_parameters(kind, llama2_7b)
    n = layers_to_remove(llama2_7b, 0.25, added)
    gone = n * llama2_7b.layer_parameters(0) - added(n)
    dense = llama2_7b.n_parameters()
    assert n == n_layers
    assert round(100 * removed_fraction(dense, dense - gone), 2) == percent


def test_sparsity_zero_removes_nothing(llama2_7b: Decoder) -> None:
    assert layers_to_remove(llama2_7b, 0.0) == 0
    assert layers_to_remove(llama2_7b, 0.0, lambda n: -(10**9)) == 0


def test_more_sparsity_removes_more(llama2_7b: Decoder) -> None:
    counts = [layers_to_remove(llama2_7b, s / 20) for s in range(19)]
    assert counts == sorted(counts)
    assert counts[-1] > 20


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_outside_the_range(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        check_sparsity(sparsity)


def test_sparsity_that_layers_cannot_reach() -> None:
    decoder = Decoder.from_config(tiny_config("llama", n_layers=2))
    with pytest.raises(
        UnsupportedModelError, match=r"0.95 cannot be reached.*taking out all 2 removes"
    ):
        layers_to_remove(decoder, 0.95)
