from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.sources.mixing import Document, first_documents, mix, text_fingerprint

DOCUMENTS = [Document(f"{i:04d} " * (1 + i % 7), "ab"[i % 2]) for i in range(200)]


def _count(documents: list[Document], tokenizer: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False).input_ids
        counts[document.domain] += len(ids)
    return counts


@pytest.mark.parametrize("n_tokens", [1, 7, 100, 1001])
def test_tokens_come_out_exactly(n_tokens: int, tokenizer: Any):
    mixture = mix(DOCUMENTS, {"a": 3, "b": 1}, n_tokens=n_tokens, tokenizer=tokenizer)
    counts = _count(mixture, tokenizer)
    assert counts.total() == n_tokens
    assert abs(counts["a"] - 0.75 * n_tokens) < 1


def test_every_prefix_is_near_its_fractions(tokenizer: Any):
    mixture = mix(DOCUMENTS, {"a": 3, "b": 1}, n_tokens=1200, tokenizer=tokenizer)
    longest = max(len(document.text) for document in DOCUMENTS)
    for end in range(1, len(mixture)):
        counts = _count(mixture[:end], tokenizer)
        assert abs(counts["a"] - 3 * counts["b"]) <= 3 * longest


def test_rows_are_counted_whatever_their_length():
    mixture = mix(DOCUMENTS, {"a": 3, "b": 1}, n_documents=80, by="rows")
    assert Counter(d.domain for d in mixture) == {"a": 60, "b": 20}
    assert set(mixture) <= set(DOCUMENTS)


def test_rows_stop_at_a_number_of_tokens(tokenizer: Any):
    mixture = mix(DOCUMENTS, {"a": 1, "b": 1}, n_tokens=333, tokenizer=tokenizer, by="rows")
    assert _count(mixture, tokenizer).total() == 333
    rows = Counter(d.domain for d in mixture)
    assert abs(rows["a"] - rows["b"]) <= 1


def test_seed_fixes_the_order_and_none_keeps_it(tokenizer: Any):
    def make(seed: int | None) -> list[Document]:
        return mix(DOCUMENTS, {"a": 1}, n_documents=20, by="rows", seed=seed)

    assert make(1) == make(1) != make(2)
    assert make(None) == [d for d in DOCUMENTS if d.domain == "a"][:20]


def test_stream_is_read_only_as_far_as_needed():
    read = []

    def stream() -> Iterator[Document]:
        for i in range(10_000):
            read.append(i)
            yield DOCUMENTS[i % 200]

    mix(stream(), {"a": 1, "b": 1}, n_documents=10, by="rows")
    assert len(read) == 10


def test_exhausted_domain_is_named(tokenizer: Any):
    with pytest.raises(ConfigError, match="too little of the domain 'c': it ran out at 0 of 50"):
        mix(DOCUMENTS, {"a": 1, "c": 1}, n_tokens=100, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, 'by="tokens" needs n_tokens'),
        ({"n_documents": 3}, 'by="tokens" needs n_tokens'),
        ({"n_tokens": 3, "n_documents": 3, "by": "rows"}, "needs one of the two"),
        ({"n_tokens": 3}, "n_tokens=3 needs a tokenizer"),
        ({"n_documents": 0, "by": "rows"}, "n_documents must be at least 1, got 0"),
    ],
)
def test_contradictory_limits_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        mix(DOCUMENTS, {"a": 1}, **arguments)


@pytest.mark.parametrize("proportions", [{}, {"a": 1.0, "b": 0.0}])
def test_proportions_must_be_positive(proportions: dict[str, float]):
    with pytest.raises(ConfigError, match="Proportions must be positive"):
        mix(DOCUMENTS, proportions, n_documents=1, by="rows")


def test_the_last_document_is_truncated(tokenizer: Any):
    documents = [Document("abcdef", "x"), Document("", "x"), Document("ghij", "x")]
    assert first_documents(documents, n_tokens=8, tokenizer=tokenizer) == [
        Document("abcdef", "x"),
        Document("gh", "x"),
    ]
    assert first_documents(documents, n_documents=1) == documents[:1]
    assert first_documents(documents) == documents
    with pytest.raises(ConfigError, match="11 tokens are needed and the text has 10"):
        first_documents(documents, n_tokens=11, tokenizer=tokenizer)


def test_fingerprint_sees_text_domain_and_order():
    one, two = Document("a", "x"), Document("b", "x")
    keys = [
        text_fingerprint(documents)
        for documents in ([one, two], [two, one], [one], [Document("a", "y"), two])
    ]
    assert len(set(keys)) == 4 and keys[0] == text_fingerprint(iter([one, two]))
