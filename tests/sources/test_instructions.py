from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamline.errors import AssetError, ConfigError
from streamline.sources.instructions import is_instructions, load_examples, prompt_text
from streamline.training.sequences import as_sequences


@pytest.fixture
def examples(tmp_path: Path) -> str:
    path = tmp_path / "some.jsonl"
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(40)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(path)


def test_instructions_are_distinguished_from_running_text(examples, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "running"}))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    assert is_instructions(examples) and is_instructions("alpaca")
    for other in ("packaged", "wikitext2", str(text), str(broken), str(tmp_path / "none.jsonl")):
        assert not is_instructions(other)


def test_no_example_is_in_two_parts_and_follow_the_seed(examples, tokenizer):
    train, held_out = load_examples(examples, [2000, 1000], tokenizer=tokenizer, seed=3)
    assert {r["output"] for r in train}.isdisjoint(r["output"] for r in held_out)
    length = len(tokenizer(prompt_text({"instruction": "Say 12.", "output": ""}) + "12").input_ids)
    assert len(train) == pytest.approx(2000 / length, abs=1.1)
    assert len(held_out) == pytest.approx(1000 / length, abs=1.1)
    assert load_examples(examples, [2000, 1000], tokenizer=tokenizer, seed=3) == [train, held_out]
    assert load_examples(examples, [2000, 1000], tokenizer=tokenizer, seed=4) != [train, held_out]
    everything, none = load_examples(examples, [10**6, 0], tokenizer=tokenizer, seed=3)
    assert len(everything) == 40 and none == []
    assert len(as_sequences(train, tokenizer, 256).ids) == len(train)


def test_the_prompt_is_alpacas():
    alone = {"instruction": "Add 2 and 3.", "output": "5"}
    assert prompt_text(alone) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:\n"
    )
    given = prompt_text(alone | {"instruction": "Add.", "input": "2 3"})
    assert given.startswith("Below is an instruction that describes a task, paired with an input ")
    assert given.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n2 3\n\n### Response:\n")


def test_too_few_examples_are_refused(examples, tokenizer):
    with pytest.raises(ConfigError, match=r"has 40 examples, too few for parts of \[1, 1000000\]"):
        load_examples(examples, [1, 10**6], tokenizer=tokenizer, seed=0)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "line 1 is not JSON"),
        (json.dumps({"instruction": "x"}), "line 1: an example needs 'instruction' and 'output'"),
        (json.dumps({"output": "x"}), "line 1: the example has no 'instruction'"),
        (json.dumps(["x"]), "line 1: an example needs"),
    ],
)
def test_a_broken_file_is_named_with_its_line(line, match, tmp_path, tokenizer):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(AssetError, match=match):
        load_examples(str(path), [10], tokenizer=tokenizer, seed=0)


def test_without_a_hub_the_reason_is_reported(tokenizer):
    with pytest.raises(
        AssetError,
        match=r"yahma/alpaca-cleaned, split train, is not in the local cache, .*"
        r"HF_HUB_OFFLINE is set\. Unset it, .*files of your own",
    ):
        load_examples("alpaca", [10], tokenizer=tokenizer, seed=0)


@pytest.mark.parametrize("data", ["caf\xe9\n".encode("latin-1"), b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_named(tmp_path, tokenizer, data):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    assert not is_instructions(str(path))
    with pytest.raises(AssetError, match=r"rows\.jsonl"):
        load_examples(str(path), [10], tokenizer=tokenizer, seed=0)
