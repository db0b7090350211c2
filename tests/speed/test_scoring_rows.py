"""The rows that ask questions, on tiny models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from streamline.benchmarks.speed import (
    commonsense_dense,
    commonsense_variants,
    deep_config,
    mmlu_5shot,
    passages,
    questions,
    report,
)
from streamline.benchmarks.speed.common import Options
from streamline.errors import ConfigError
from streamline.plan import Span
from streamline.sources.mixing import Document
from streamline.testing.models import tiny_model, tiny_tokenizer


def test_slices_share_no_question(toy_parts: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama", n_layers=2), tiny_tokenizer()
    parts = toy_parts(None, tokenizer, model, 6)
    first, second = questions.slices(parts, 2, 2)
    ids = [{(r.task, r.doc_id) for r in cut.requests} for cut in (first, second)]
    assert ids[0] == {(t, d) for t in ("first", "second") for d in (0, 1)}
    assert not ids[0] & ids[1] and len(ids[1]) == 4
    with pytest.raises(ConfigError, match="first has 6 questions, too few for 4 times 2"):
        questions.slices(parts, 2, 4)


def test_dense_row_with_bfloat16(
    options: Options, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    tiny(commonsense_dense, n_layers=2)
    outcome = commonsense_dense.run(options)
    half = outcome.facts["bf16"]
    assert outcome.facts["max_difference"] < 1e-3 < half["max_difference"]
    assert set(half["accuracy"]) == {"first", "second"} and 0 < half["questions_graded_alike"] <= 1
    assert half["theirs"]["max_difference"] > 1e-3 and half["ratio_against_bf16"] > 0
    assert outcome.to_json()["ratios"].keys() == {"ours", "ours_bf16", "theirs_bf16"}
    report.save(outcome, tmp_path, "quick")
    text = (tmp_path / "README.md").read_text()
    assert (
        "| commonsense_dense, bf16 | the same, ours in bfloat16 | lm-eval hf in float32 | 3.50"
        in text
    )
    assert "right answers in bfloat16: first " in text and "/10; answers against" in text
    assert "lm-eval's own bfloat16: ours in bfloat16 is " in text
    assert "not tried but taken as 8" in text


def test_variants_row(
    options: Options, words: list[str], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(commonsense_variants)
    documents = [Document(" ".join(words * 40), "made up")]
    monkeypatch.setattr(commonsense_variants, "load_texts", lambda *_, **__: documents)
    outcome = commonsense_variants.run(options)
    assert outcome.races[0].facts["n_models"] == 13
    assert any("first 2 questions" in note for note in outcome.notes)


def test_deep_row(
    options: Options, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(deep_config, n_layers=2)
    monkeypatch.setattr(deep_config, "SPANS", (Span(3, 4), Span(2, 5)))
    deep_config.deep_model.cache_clear()
    build = deep_config.deep_model.__wrapped__
    monkeypatch.setattr(deep_config, "deep_model", lambda name: build(name, 6))
    outcome = deep_config.run(options)
    assert outcome.facts["sharing"][0]["layer_runs_unshared"] > 6
    assert outcome.races[0].facts["n_models"] == 9


def test_passages_row(
    options: Options, words: list[str], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(passages, n_layers=2)
    text = [" ".join(words[k : k + 8]) for k in range(9)]
    documents = [
        Document(" ".join(f"T{name}is {part} of it and more." for part in text * 2), "made up")
        for name in "abcde"
    ]
    monkeypatch.setattr(questions, "load_texts", lambda *_, **__: documents)
    monkeypatch.setattr(questions, "_PASSAGE_CHARS", 360)
    outcome = passages.run(options)
    shared = outcome.facts["sharing"][0]
    assert shared["tokens_unshared"] > 5 * shared["tokens"]
    with pytest.raises(ConfigError, match="6 passages are needed, the packaged text holds 5"):
        questions.passages(6)


def test_mmlu_row(
    options: Options, words: list[str], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(mmlu_5shot, n_layers=2)
    rows = [{"question": f"{w} {i}?", "choices": words[:4], "answer": i % 4}
            for i, w in enumerate(words)]  # fmt: skip
    monkeypatch.setattr(questions, "load_questions", lambda where: Dataset.from_list(rows))
    monkeypatch.setattr(questions, "load_shots", lambda where: rows[:5])
    outcome = mmlu_5shot.run(dataclasses.replace(options, repeats=3))
    assert [race.facts["n_requests"] for race in outcome.races] == [28, 24, 24]
    prompt, options, gold = questions.mmlu("anatomy", 2)[1]
    assert prompt.startswith("The following are multiple choice questions (with answers) about ")
    assert prompt.count("Answer:") == 6 and options[gold] == " B"
