"""A recipe's ``cache_bytes``: teacher states on disk, where epochs repeat."""

from __future__ import annotations

import json

import pytest

import streamline as sl
from streamline.progress import Silent
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("cache_bytes", [0, 1000, 10**6])
def test_a_training_keeps_teacher_states_within_its_budget(tmp_path, cache_bytes):
    text = tmp_path / "text.jsonl"
    lines = [" ".join(["some", "words", "of", "a", "text"][i % 5 :]) for i in range(200)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    recipe = sl.Recipe(
        n_tokens=128,
        length=16,
        epochs=2,
        batch_tokens=64,
        validation_tokens=32,
        evaluations=1,
        cache_bytes=cache_bytes,
    )
    with sl.session(
        tiny_model("llama", n_layers=4),
        tiny_tokenizer(),
        folder=tmp_path / "cache",
        texts=str(text),
        n_samples=4,
        length=16,
        progress=Silent(),
    ) as session:
        assert session.prune("llm-streamline-ffn", sparsity=0.3, train=recipe).training
    stored = tmp_path / "cache" / "activations"
    sizes = [file.stat().st_size for file in stored.rglob("depth-*.*")]
    assert sum(sizes) <= cache_bytes
    # Both ends of one span: 8 sequences of 16 tokens and 32 features in bfloat16, and 8 marks.
    assert sorted(sizes) == ([64, 64, 8192, 8192] if cache_bytes > 10**5 else [])
