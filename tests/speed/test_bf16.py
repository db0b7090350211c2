"""Models in bfloat16 beside those in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamline.benchmarks.speed import bf16, questions, scoring_row
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring.score import score
from streamline.plan import Span
from streamline.testing.models import tiny_model, tiny_tokenizer


def test_a_twin_has_rounded_weights_and_exact_frequencies() -> None:
    model = tiny_model("llama", n_layers=2)
    state = torch.random.get_rng_state()
    made = bf16.twin(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(made.state_dict()[name], value.bfloat16())
    assert torch.equal(made.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert model.dtype == torch.float32 and made.dtype == torch.bfloat16


def test_variants_keep_what_they_share() -> None:
    decoder = Decoder(tiny_model("llama").requires_grad_(False))
    paths = [dense_path(decoder), scoring_row.replaced(decoder, Span(3, 5), "ffn")]
    dense, other = bf16.in_bfloat16(paths)
    assert dense.decoder is other.decoder and dense.nodes == dense_path(dense.decoder).nodes
    assert other.nodes[:3] == dense.nodes[:3] and other.nodes[3].layer == paths[1].nodes[3].layer
    first = next(other.nodes[3].module.parameters())
    assert first.dtype == torch.bfloat16
    assert next(paths[1].nodes[3].module.parameters()).dtype == torch.float32


def test_the_effect_counts_questions_and_measures_answers(asked: Callable[..., Any]) -> None:
    paths = [dense_path(Decoder(tiny_model("llama", n_layers=2).requires_grad_(False)))]
    part = questions.written("w", asked(6), tiny_tokenizer())
    exact = score(paths, part.requests)
    same = bf16.effect(part, exact, exact)
    assert (same["alike"], same["n"], same["max_difference"]) == (6, 6, 0.0)
    other = bf16.effect(part, exact, score(bf16.in_bfloat16(paths), part.requests))
    assert 0 < other["mean_difference"] <= other["max_difference"] < 1
    both = bf16.merged([same, other])
    assert both["questions_graded_alike"] == pytest.approx((6 + other["alike"]) / 12)
    assert both["max_difference"] == other["max_difference"]
