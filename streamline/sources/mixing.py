"""Documents in the order of a mixture, and how many of them a draw is made from.

A mixture serves the domain that is furthest behind its fraction, so every beginning of it has the
fractions, to within one document. A pool is such a beginning; where it ends must not depend on the
documents (a pool that ends before a long one has too few of these), only on how many tokens there
are. Where a domain runs out, the others go on in their proportions, and it is told which.

Example::

    stream = mixed(documents, {"wiki": 0.3, "books": 0.7}, "tokens", encode=encode)
    pool = gather(stream, least=8_192, most=64 * 8_192)
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from streamline.errors import ConfigError
from streamline.sources.packaged import PROPORTIONS

__all__ = [
    "MIXTURES",
    "Counted",
    "Document",
    "Encode",
    "Encoded",
    "Exhausted",
    "first",
    "gather",
    "mixed",
    "plain",
    "tokens_per_document",
]

Counted = Literal["tokens", "rows"]

SLIMPAJAMA_PROPORTIONS = {
    "RedPajamaCommonCrawl": 0.361,
    "RedPajamaGithub": 0.008,
    "RedPajamaBook": 0.091,
    "RedPajamaStackExchange": 0.010,
    "RedPajamaWikipedia": 0.031,
    "RedPajamaArXiv": 0.007,
    "RedPajamaC4": 0.492,
}
"""LLM-Streamline, arXiv:2403.19135v1, table 7; fractions of tokens."""

SLIMPAJAMA_ROWS_V1 = SLIMPAJAMA_PROPORTIONS
"""The same fractions of documents: what the paper's own runs used, according to its authors."""

SLIMPAJAMA_ROWS = SLIMPAJAMA_PROPORTIONS | {
    "RedPajamaCommonCrawl": 0.361 / 3,
    "RedPajamaArXiv": 0.007 / 20,
    "RedPajamaBook": 0.091 / 200,
}
"""Fractions of documents in the released code since April 2025: long domains are divided down."""

MIXTURES: dict[str, tuple[dict[str, float], Counted]] = {
    "packaged": (PROPORTIONS, "tokens"),
    "slimpajama": (SLIMPAJAMA_PROPORTIONS, "tokens"),
    "slimpajama:rows": (SLIMPAJAMA_ROWS, "rows"),
    "slimpajama:rows-v1": (SLIMPAJAMA_ROWS_V1, "rows"),
}
"""Name of a text -> the fraction of each domain, and what of it the fractions count."""

_DOCUMENT_TOKENS = {"slimpajama:rows": 936, "slimpajama:rows-v1": 12_400}
_WAITING = 1000  # documents of one domain kept while another is looked for in a stream

#: A text's tokens, with those that begin and end a document.
Encode = Callable[[str], "array[int]"]


class Exhausted(ConfigError):
    """A text that ends before it has what was asked."""


@dataclass(frozen=True)
class Document:
    """One text and the domain it counts towards."""

    text: str
    domain: str


@dataclass(frozen=True)
class Encoded:
    """One document as tokens."""

    domain: str
    ids: array[int]


def plain(documents: Iterable[Document], encode: Encode) -> Iterator[Encoded]:
    """Documents as they come, as tokens."""
    for document in documents:
        yield Encoded(document.domain, encode(document.text))


def mixed(
    documents: Iterable[Document],
    proportions: Mapping[str, float],
    by: Counted,
    *,
    encode: Encode,
    longest: int | None = None,
    seed: int | None = 0,
    spent: MutableMapping[str, int] | None = None,
) -> Iterator[Encoded]:
    """Documents in an order in which each domain has its fraction, for as long as there are any.

    When a domain runs out, the others go on in their proportions.

    Args:
        documents: The source; may be a stream, which is read only as far as needed. Where it ends
            before a domain has given all that it has, it is read once more.
        proportions: Domain -> fraction; scaled to sum to one. Other domains are left out.
        by: What the fractions count: tokens, or documents whatever their length.
        encode: Makes tokens of a text.
        longest: With ``by="tokens"``, of a longer document so many tokens are taken, from a random
            place: one book is not a domain. Documents that are counted stay whole.
        seed: Seed of those places.
        spent: Is given each domain that has run out, with the documents that it had, before the
            next document of another one comes.

    Raises:
        ConfigError: If a proportion is not positive.
    """
    if not proportions or min(proportions.values()) <= 0:
        raise ConfigError(f"Proportions must be positive, got {dict(proportions)}.")
    supply, place = _Supply(documents, proportions), random.Random(seed)
    rows, tokens = dict.fromkeys(proportions, 0), dict.fromkeys(proportions, 0)
    while rows:
        if by == "tokens":
            domain = min(tokens, key=lambda d: tokens[d] / proportions[d])
        else:  # Sainte-Lague: every beginning has each domain within one row of its fraction
            domain = min(rows, key=lambda d: (rows[d] + 0.5) / proportions[d])
        document = supply.next(domain)
        if document is None:
            del tokens[domain]
            given = rows.pop(domain)
            if spent is not None:
                spent[domain] = given
            continue
        ids = encode(document.text)
        if by == "tokens" and longest is not None and len(ids) > longest:
            start = place.randrange(len(ids) - longest + 1)
            ids = ids[start : start + longest]
        rows[domain] += 1
        tokens[domain] += len(ids)
        if ids:
            yield Encoded(domain, ids)


def tokens_per_document(spec: str | None) -> int:
    """About how many tokens a document of a text has, for plans: what is run counts them."""
    return _DOCUMENT_TOKENS.get(spec or "", 1_000)


def first(
    stream: Iterable[Encoded],
    n_documents: int,
    *,
    least: int = 1,
    spent: Mapping[str, int] | None = None,
) -> list[Encoded]:
    """So many documents of a stream.

    Args:
        stream: Documents in their order.
        n_documents: How many.
        least: Tokens that they must hold.
        spent: Domains that have run out so far, for the message.

    Raises:
        Exhausted: If it has fewer, or they hold less than ``least`` tokens.
    """
    found = list(islice(stream, n_documents))
    if len(found) < n_documents:
        raise Exhausted(
            f"{n_documents:,} documents are needed and the text has {len(found):,}{_all_of(spent)}"
        )
    size = sum(len(one.ids) for one in found)
    if size < least:
        raise Exhausted(
            f"{n_documents:,} documents have {size:,} tokens, and a sequence has {least:,}"
        )
    return found


def gather(
    stream: Iterable[Encoded],
    *,
    least: int,
    most: int,
    spent: MutableMapping[str, int] | None = None,
) -> list[Encoded]:
    """The documents that a draw is made from.

    Args:
        stream: Documents in their order; read no further than needed.
        least: Tokens that are needed.
        most: Tokens that are enough.
        spent: Domains that have run out so far. A pool that has what is needed ends there, with
            the fractions of its mixture; nothing that it lacks is left in ``spent`` then.

    Returns:
        The first documents that hold ``most`` tokens, or all that there are.

    Raises:
        Exhausted: If they hold less than ``least``.
    """
    found: list[Encoded] = []
    size, whole = 0, True
    for one in stream:
        if spent and size >= least:
            break
        whole = whole and not spent
        found.append(one)
        size += len(one.ids)
        if size >= most:
            return found
    if size < least:
        raise Exhausted(
            f"{least:,} tokens are needed and the text has {size:,} in {len(found):,} documents"
            f"{_all_of(spent)}"
        )
    if spent and whole:
        spent.clear()
    return found


def _all_of(spent: Mapping[str, int] | None) -> str:
    """What each domain had, in words, where all have run out."""
    if not spent:
        return ""
    return f" ({', '.join(f'{count:,} of {domain!r}' for domain, count in spent.items())})"


class _Supply:
    """Documents by domain out of one stream, read no further than needed.

    While one domain is looked for, a bounded number of documents of each other one waits. Those
    that there is no room for are passed over, and read once more if the stream ends before their
    domain has enough: no document is lost, and of each the memory holds one byte.
    """

    def __init__(self, documents: Iterable[Document], domains: Iterable[str]) -> None:
        self._documents = documents
        self._stream = enumerate(documents)
        self._waiting: dict[str, deque[Document]] = {domain: deque() for domain in domains}
        self._passed = dict.fromkeys(self._waiting, 0)  # documents passed over, to be read again
        self._done = bytearray()  # by place in the stream: 0 for those

    def next(self, domain: str) -> Document | None:
        """The next document of a domain, or None if it has no more."""
        queue, again = self._waiting[domain], False
        while not queue:
            found = next(self._stream, None)
            if found is not None:
                self._meet(*found)
            elif again or not self._passed[domain]:
                return None
            else:
                again, self._stream = True, enumerate(self._documents)
        return queue.popleft()

    def _meet(self, place: int, document: Document) -> None:
        """Let a document wait, or pass it over."""
        waiting = self._waiting.get(document.domain)
        if place == len(self._done):
            self._done.append(waiting is None)
            if waiting is not None:
                self._passed[document.domain] += 1
        if waiting is not None and not self._done[place] and len(waiting) < _WAITING:
            waiting.append(document)
            self._done[place] = True
            self._passed[document.domain] -= 1
