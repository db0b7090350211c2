from __future__ import annotations

import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import pytest

from streamline.errors import ConfigError
from streamline.sources.mixing import (
    Counted,
    Document,
    Encoded,
    Exhausted,
    first,
    gather,
    mixed,
    plain,
)

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


@pytest.mark.parametrize("by", ["rows", "tokens"])
def test_where_a_domain_runs_out_the_others_go_on_in_their_proportions(by: Counted):
    documents = [Document("x" * 10, name) for name in ("a" * 40 + "b" * 200 + "c" * 5)]
    spent: dict[str, int] = {}
    stream = mixed(documents, {"a": 1, "b": 2, "c": 1}, by, encode=encode, spent=spent)
    found = Counter(one.domain for one in first(stream, 80, spent=spent))
    assert found == {"a": 25, "b": 50, "c": 5} and spent == {"c": 5}
    for _ in stream:
        pass
    assert spent == {"c": 5, "a": 40, "b": 200}


def test_a_text_with_too_few_documents_in_all_says_how_many_of_each_domain():
    few = r"201 documents are needed and the text has 200 \(0 of 'c', 100 of '.', 100 of '.'\)"
    spent: dict[str, int] = {}
    fractions = {"a": 1, "b": 1, "c": 1}
    with pytest.raises(Exhausted, match=few):
        first(mixed(DOCUMENTS, fractions, "rows", encode=encode, spent=spent), 201, spent=spent)
    message = r"1,000,000 tokens are needed and the text has [\d,]+ in 200 documents \(0 of 'c', "
    with pytest.raises(Exhausted, match=message):
        stream = mixed(DOCUMENTS, fractions, "rows", encode=encode, spent=spent)
        gather(stream, least=10**6, most=10**6, spent=spent)


def test_a_pool_that_has_what_is_needed_ends_where_a_domain_runs_out():
    documents = [Document("x" * 10, name) for name in ("a" * 40 + "b" * 10)]

    def pool(least: int) -> tuple[Counter[str], dict[str, int]]:
        spent: dict[str, int] = {}
        stream = mixed(documents, {"a": 1, "b": 1}, "tokens", encode=encode, spent=spent)
        found = gather(stream, least=least, most=10**6, spent=spent)
        return Counter(one.domain for one in found), spent

    assert pool(100) == ({"a": 11, "b": 10}, {})
    assert pool(300) == ({"a": 20, "b": 10}, {"b": 10})


class Rare:
    """4,000 common documents, one rare one behind each 1,000, and what is alive of all of them."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Document] = weakref.WeakSet()
        self.most, self.begun = 0, 0

    def __iter__(self) -> Iterator[Document]:
        self.begun += 1
        for i in range(4_000):
            yield self._seen(Document(f"{i:05d}", "common"))
            if i % 1_000 == 999:
                yield self._seen(Document(f"{i:05d}", "rare"))

    def _seen(self, document: Document) -> Document:
        self.alive.add(document)
        self.most = max(self.most, len(self.alive))
        return document


def test_no_document_is_lost_while_a_rare_one_is_looked_for():
    rare = Rare()
    found = [text(one) for one in mixed(rare, {"common": 1, "rare": 1}, "rows", encode=encode)]
    assert len(found) == 4_004 and set(found) == {f"{i:05d}" for i in range(4_000)}
    assert rare.begun > 1 and rare.most < 1_100


def test_a_stream_that_cannot_be_read_again_ends_where_it_ends():
    once = iter(Rare())
    found = list(mixed(once, {"common": 1, "rare": 1}, "rows", encode=encode))
    assert 1_000 <= len(found) < 1_100


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
