"""What the public face is given: refused in one message, and taken as it is otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamline as sl
from streamline.api.arguments import check_questions
from streamline.progress import Silent
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [f"line {i} of a text that says {i * i} and {i % 7} again" for i in range(200)]
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return str(file)


def perplexities(models: Any, text: str, **changes: Any) -> dict[str, float]:
    found = sl.evaluate(
        models, TOKENIZER, [], perplexity=64, perplexity_texts=text, progress=Silent(), **changes
    )
    values = {}
    for name, record in found.records.items():
        (value,) = record.summary.perplexity.values()
        values[name] = value
    return values


def test_dropout_of_a_model_in_training_is_off_and_comes_back(text: str) -> None:
    model = tiny_model("opt", n_layers=3)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    wanted = perplexities({"dense": model}, text)
    model.train()
    assert perplexities({"dense": model}, text) == wanted
    options = {"texts": text, "n_samples": 4, "length": 16, "progress": Silent()}
    short = sl.prune(model, TOKENIZER, "shortgpt", sparsity=0.2, **options)
    assert all(module.training for module in model.modules())
    assert not short.model.training
    model.eval()
    again = sl.prune(model, TOKENIZER, "shortgpt", sparsity=0.2, **options)
    assert again.plan == short.plan and again.notes == short.notes


def test_one_model_may_have_two_names(text: str) -> None:
    model = tiny_model("llama", n_layers=2)
    found = perplexities({"dense": model, "again": model}, text)
    assert found["dense"] == found["again"]


def test_what_is_removed_is_counted_against_the_reference(text: str) -> None:
    model, small = tiny_model("llama", n_layers=4), tiny_model("llama", n_layers=2)
    orders = [{"small": small, "dense": model}, {"dense": model, "small": small}]
    shares = [
        {
            name: record.parameters.removed_fraction
            for name, record in sl.evaluate(
                models,
                TOKENIZER,
                [],
                perplexity=32,
                perplexity_texts=text,
                progress=Silent(),
            ).records.items()
        }
        for models in orders
    ]
    assert shares[0] == shares[1]
    assert shares[0]["dense"] == 0.0 and 0 < shares[0]["small"] < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit must be at least 1"),
        ({"perplexity": -5}, "a number of tokens, 0 for none; got -5"),
        ({"data_dir": "/nowhere/at/all"}, "data_dir must be a folder"),
        ({"include_path": "/nowhere/at/all"}, "include_path must be a folder"),
        ({"tasks": "", "perplexity": 0}, "nothing to evaluate"),
        ({"models": {}}, "no model to evaluate"),
        ({"models": {"a": "llama"}}, "'a' is a str: give a loaded"),
        ({"models": [1]}, "is a list: give a loaded"),
        ({"reference": "other"}, "the reference 'other' is none of the models"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"models": {"dense": tiny_model("llama", n_layers=1)}, "tasks": "piqa"} | changes
    with pytest.raises(sl.ConfigError, match=message):
        sl.evaluate(given.pop("models"), TOKENIZER, given.pop("tasks"), progress=Silent(), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": 0}, "n_samples >= 1 and length >= 2, got 0"),
        ({"sparsity": "0.2"}, "sparsity must be a number in"),
        ({"sparsity": 1.5}, "at least 0 and below 1, got 1.5"),
        ({"method": sl.methods.StreamlineLayer}, "got the class StreamlineLayer; make one of it"),
        ({"train": {"n_tokens": 64}}, "train must be a Recipe or None"),
        ({"lora": True}, "lora must be a LoraSettings or None"),
        ({"kd": "all"}, "kd must be a DistillationSettings or None"),
    ],
)
def test_what_cannot_be_pruned_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"method": "shortgpt", "sparsity": 0.2} | changes
    model = tiny_model("llama", n_layers=1)
    with pytest.raises(sl.ConfigError, match=message):
        sl.prune(model, TOKENIZER, given.pop("method"), progress=Silent(), **given)


def test_a_dtype_or_device_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sl.ConfigError, match="dtype must be one of float32"):
        sl.load("smollm2-135m-instruct", dtype="float31")
    with pytest.raises(sl.ConfigError, match="gpu"):
        sl.load("smollm2-135m-instruct", device="gpu")


def test_how_thoroughly_speed_is_measured_has_three_names() -> None:
    with pytest.raises(sl.ConfigError, match="efficiency must be off, quick or full; got 'fast'"):
        check_questions("piqa", None, 0, None, None, "fast")
