"""The run's ``training.cache_bytes``: teacher states on disk, where epochs repeat."""

from __future__ import annotations

import json

import pytest

from streamline.progress import Silent
from streamline.run.config import build_config
from streamline.run.model_run import ModelRun
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("cache_bytes", [0, 1000, 10**6])
def test_a_run_keeps_teacher_states_within_its_budget(tmp_path, cache_bytes):
    tiny_model("llama", n_layers=4).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.jsonl"
    lines = [" ".join(["some", "words", "of", "a", "text"][i % 5 :]) for i in range(200)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    tokens = {"texts": str(text), "length": 16}
    training = {"n_tokens": 128, "batch_tokens": 64, "validation_tokens": 32, "evaluations": 1}
    config = build_config(
        {
            "models": str(tmp_path / "model"),
            "methods": "llm-streamline-ffn",
            "sparsities": "0.3",
            "tasks": "piqa",
            "out": tmp_path / "out",
            "device": "cpu",
            "calibration": {**tokens, "n_samples": 4},
            "training": {**tokens, **training, "epochs": 2, "cache_bytes": cache_bytes},
        }
    )
    stored = tmp_path / "out" / "cache" / "activations"
    built = ModelRun(config, str(tmp_path / "model"), Silent()).build("llm-streamline-ffn", 0.3)
    assert built.provenance["training"]
    sizes = [file.stat().st_size for file in stored.rglob("depth-*.*")]
    assert sum(sizes) <= cache_bytes
    # Both ends of one span: 8 sequences of 16 tokens and 32 features in bfloat16, 8 marks.
    assert sorted(sizes) == ([8, 8, 8192, 8192] if cache_bytes > 10**5 else [])
