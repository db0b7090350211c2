from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import pytest

from streamline.errors import ConfigError
from streamline.sources.mixing import Document, Encoded, Exhausted, first, gather, mixed, plain

DOCUMENTS = [Document(f"{i:04d} " * (1 + i % 7), "ab"[i % 2]) for i in range(200)]


def encode(text: str) -> array[int]:
    return array("i", list(text.encode()))


def text(one: Encoded) -> str:
    return bytes(list(one.ids)).decode()


def domains(found: Iterable[Encoded]) -> Counter[str]:
    """Tokens by domain."""
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.domain] += len(one.ids)
    return counts


def test_every_beginning_is_near_its_fractions_of_tokens():
    found = list(islice(mixed(DOCUMENTS, {"a": 3, "b": 1}, "tokens", encode=encode), 120))
    longest = max(len(document.text) for document in DOCUMENTS)
    for end in range(1, len(found)):
        counts = domains(found[:end])
        assert abs(counts["a"] - 3 * counts["b"]) <= 3 * longest


def test_rows_are_counted_whatever_their_length():
    stream = mixed(DOCUMENTS, {"a": 3, "b": 1}, "rows", encode=encode)
    found = first(stream, 80)
    assert Counter(one.domain for one in found) == {"a": 60, "b": 20}
    assert {text(one) for one in plain(DOCUMENTS, encode)} >= {text(one) for one in found}


def test_of_a_long_document_a_mixture_by_tokens_takes_a_piece_from_anywhere():
    book = Document("".join(chr(32 + i % 90) for i in range(5_000)), "a")
    books = [book, *(Document("z" * 10, "b") for _ in range(400))] * 3

    def starts(seed: int) -> list[str]:
        stream = mixed(books, {"a": 1, "b": 1}, "tokens", encode=encode, longest=70, seed=seed)
        pieces = [text(one) for one in islice(stream, 20)]
        long = [piece for piece in pieces if len(piece) > 10]
        assert long and all(len(piece) == 70 and piece in book.text for piece in long)
        return long

    assert starts(1) == starts(1) != starts(2)
    (whole,) = first(mixed([book], {"a": 1}, "rows", encode=encode, longest=70), 1)
    assert len(whole.ids) == 5_000


def test_a_stream_is_read_only_as_far_as_needed():
    read = []

    def stream() -> Iterator[Document]:
        for i in range(10_000):
            read.append(i)
            yield DOCUMENTS[i % 200]

    first(mixed(stream(), {"a": 1, "b": 1}, "rows", encode=encode), 10)
    assert len(read) == 10


def test_a_domain_that_runs_out_is_named_with_what_there_is():
    with pytest.raises(Exhausted, match=r"9 documents are needed .* has 1 \(of the domain 'c' it "):
        first(mixed(DOCUMENTS, {"a": 1, "c": 1}, "rows", encode=encode), 9)
    message = r"1,000,000 tokens are needed and the text has [\d,]+ in 200 documents \(of the .*'a'"
    with pytest.raises(Exhausted, match=message):
        stream = mixed(DOCUMENTS, {"a": 1, "b": 1}, "rows", encode=encode)
        gather(stream, least=10**6, most=10**6)


@pytest.mark.parametrize("proportions", [{}, {"a": 1.0, "b": 0.0}])
def test_proportions_must_be_positive(proportions: dict[str, float]):
    with pytest.raises(ConfigError, match="Proportions must be positive"):
        next(mixed(DOCUMENTS, proportions, "rows", encode=encode))


def sized(*sizes: int) -> Iterator[Encoded]:
    for size in sizes:
        yield Encoded("a", array("i", [0] * size))


def test_a_pool_ends_at_its_size_or_with_the_text():
    assert len(gather(sized(500, *[10] * 900), least=20, most=1_000)) == 51
    assert len(gather(sized(500, *[10] * 9), least=20, most=10**6)) == 10
    with pytest.raises(Exhausted, match="600 tokens are needed and the text has 590 in 10 docu"):
        gather(sized(500, *[10] * 9), least=600, most=10**6)


def test_too_few_documents_are_counted():
    assert len(first(sized(1, 2, 3), 2)) == 2
    with pytest.raises(Exhausted, match="1,234 documents are needed and the text has 3"):
        first(sized(1, 2, 3), 1234)
