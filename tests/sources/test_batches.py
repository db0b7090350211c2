from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from streamline.errors import ConfigError
from streamline.sources.batches import TokenBatches, token_batches
from streamline.sources.drawing import Drawn
from streamline.sources.mixing import MIXTURES
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
    with pytest.raises(ConfigError, match=r"too few for 9 sequences of 50: use at most 0"):
        token_batches(["short"], tiny_tokenizer(), n_samples=9, length=50, seed=0)


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


def words(found: torch.Tensor) -> set[str]:
    """The numbers of the documents that a draw is made from, but for those cut in two."""
    tokenizer = tiny_tokenizer()
    return set(re.findall(r"the (\d+) fox ran \1", "".join(tokenizer.batch_decode(found))))


def test_no_document_is_in_training_and_validation(batches, text):
    train, validation = batches.training(
        text, n_tokens=1600, validation_tokens=160, length=32, seed=0
    )
    assert (train.shape, validation.shape) == ((50, 32), (5, 32))
    every, apart = batches.training(text, n_documents=200, validation_tokens=160, length=32, seed=1)
    assert words(train) and words(validation) and words(apart)
    assert not (words(train) | words(every)) & (words(validation) | words(apart))
    heldout = batches.tokens(text, n_samples=5, length=32, seed=0, part="heldout")
    assert not (words(every) | words(apart)) & words(heldout)
    assert torch.equal(train, batches.tokens(text, n_samples=50, length=32, seed=0))


def test_validation_of_fine_tuning_is_rounded_up_or_left_out(batches, text):
    sizes = {"n_tokens": 64, "length": 16, "seed": 0}
    train, validation = batches.fine_tuning(text, validation_tokens=17, **sizes)
    assert (len(train), len(validation)) == (4, 2)
    assert batches.fine_tuning(text, validation_tokens=0, **sizes)[1] is None


def test_documents_are_counted_and_taken_whole(batches, text):
    found = batches.tokens(text, n_documents=40, length=8, seed=0)
    (facts,) = batches.texts()
    assert facts["documents"] == facts["pool"] == 40
    assert facts["tokens"] == found.numel()
    assert 40 * 15 <= found.numel() <= 40 * 22
    with pytest.raises(ConfigError, match="too short for that: 500 documents are needed and the"):
        batches.tokens(text, n_documents=500, length=8, seed=0)
    message = r"too short for that: 2 documents have \d\d tokens, and a sequence has 512"
    with pytest.raises(ConfigError, match=message):
        batches.tokens(text, n_documents=2, length=512, seed=0)


def test_a_text_is_turned_into_tokens_once_for_all_views(text):
    asked: list[str] = []

    class Counting:
        eos_token_id = tiny_tokenizer().eos_token_id

        def __call__(self, text: str, **options: bool) -> object:
            asked.append(text)
            return tiny_tokenizer()(text, **options)

    batches = TokenBatches(Counting())
    for length in (8, 9, 10):
        own = batches.view()
        own.tokens(text, n_samples=4, length=length, seed=0)
        assert len(own.texts()) == 1
    assert len(asked) == len(set(asked)) > 100


def test_a_text_too_short_says_how_much_there_is(batches, text):
    message = (
        r"'.*text.jsonl' \(train\) is too short for 900 sequences of 16 tokens: 14,400 tokens "
    )
    with pytest.raises(
        ConfigError, match=message + r"are needed and the text has 4,\d\d\d in 2\d\d"
    ):
        batches.tokens(text, n_samples=900, length=16, seed=0)
    one = Path(text).with_name("one.txt")
    one.write_text("only this")
    with pytest.raises(ConfigError, match="is one document, and validation needs one of its own"):
        batches.tokens(f"{one}:all", n_samples=1, length=4, seed=0, part="validation")


def test_a_draw_is_counted_by_document_and_domain(tmp_path):
    """Three documents of 300, 100 and 100 tokens, end tokens included, all of them drawn."""
    file = tmp_path / "domains.jsonl"
    rows = [("x" * 299, "long"), ("y" * 99, "short"), ("z" * 99, "short")]
    file.write_text("\n".join(json.dumps({"text": t, "domain": d}) for t, d in rows))
    batches = TokenBatches(tiny_tokenizer())
    batches.tokens(f"{file}:all", n_documents=2, length=10, seed=0)
    batches.tokens(f"{file}:all", n_samples=10, length=20, seed=0)
    whole, some = batches.texts()
    assert whole["documents"] == 2 and whole["tokens"] in (200, 400)
    assert sum(whole["domains"].values()) == pytest.approx(1.0)
    assert some["tokens"] == 200 and 0.1 < some["largest"] <= 1.0
    assert some["name"] == f"{file}:all" and len(some["sha256"]) == 64


def test_one_document_is_much_only_beyond_a_fifth_and_a_sample():
    def drawn(largest: float, n: int) -> bool:
        facts = Drawn(documents=5, largest=largest, domains={}, tokens=9, samples=n, pool=9)
        return facts.lopsided

    assert drawn(0.21, 50) and not drawn(0.2, 50)
    assert drawn(0.3, 4) and not drawn(0.25, 4)


def test_where_a_mixture_is_not_met_it_is_said_once_and_recorded(
    batches, monkeypatch, tmp_path, caplog
):
    """The books end; 30,000 documents of SlimPajama in small."""
    file = tmp_path / "mixed.jsonl"
    rows = [("book", 40)] * 6 + [("web", 20)] * 60 + [("page", 20)] * 60
    lines = [{"text": f"{i:03d}" + "x" * (n - 4), "domain": d} for i, (d, n) in enumerate(rows)]
    file.write_text("\n".join(map(json.dumps, lines)))
    fractions = {"book": 4.0, "web": 2.0, "page": 2.0}
    monkeypatch.setitem(MIXTURES, str(file), (fractions, "rows"))
    name = f"{file}:all"
    for _ in range(2):
        batches.tokens(name, n_documents=46, length=10, seed=0, part="heldout")
    (said,) = caplog.messages
    assert "book ran out and the others went on, so that its fractions of documents" in said
    assert "book 6 documents with 240 tokens, 13 % for 50; web 20 documents with 400" in said
    (facts,) = batches.texts()
    assert facts["counts"] == {"book": 6, "page": 20, "web": 20} and facts["spent"] == {"book": 6}
    assert facts["promised"] == {"book": 0.5, "web": 0.25, "page": 0.25}
    assert facts["counted"] == "rows" and facts["domains"]["book"] == pytest.approx(240 / 1040)

    caplog.clear()
    batches.tokens(name, n_samples=4, length=10, seed=0, part="heldout")
    assert batches.texts()[1]["spent"] == {} and not caplog.messages
    with pytest.raises(ConfigError, match=r"999 documents are needed and the text has 126 \(6 of"):
        batches.tokens(name, n_documents=999, length=10, seed=0, part="heldout")
