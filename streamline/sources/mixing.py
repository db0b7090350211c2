"""Mixing documents by domain, by tokens or by rows, and the document itself.

Example::

    mixture = mix(documents, {"wiki": 0.3, "books": 0.7}, n_tokens=10_000, tokenizer=tokenizer)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from streamline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Document", "mix", "take", "text_fingerprint"]

_WAITING = 1000  # documents of one domain kept while another is looked for in a stream


@dataclass(frozen=True)
class Document:
    """One text and the domain it counts towards."""

    text: str
    domain: str


def mix(
    documents: Iterable[Document],
    proportions: Mapping[str, float],
    *,
    n_tokens: int | None = None,
    n_documents: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int | None = 0,
    by: Literal["tokens", "rows"] = "tokens",
) -> list[Document]:
    """Take documents so that each domain has its share, spread evenly over the result.

    By tokens, each domain ends at exactly its share of ``n_tokens`` (the document that would go
    over it is cut). By rows, documents are counted, whatever their length; ``n_tokens`` then only
    says when to stop.

    Args:
        documents: Where to take from; may be a stream, which is read only as far as needed.
        proportions: Domain -> share; scaled to sum to one. Other domains are left out.
        n_tokens: Size of the result in tokens.
        n_documents: Size of the result in documents, with ``by="rows"``.
        tokenizer: Counts the tokens; needed with ``n_tokens``.
        seed: Shuffles a sequence of documents first; None keeps the order. A stream is never
            shuffled here.
        by: What the shares are shares of.

    Returns:
        The mixture, in order.

    Raises:
        ConfigError: If the limits do not fit ``by``, a proportion is not positive, or a domain
            runs out before it has its share; the message names it.
    """
    if (n_tokens is None) == (n_documents is None) or (by == "tokens" and n_tokens is None):
        raise ConfigError(
            f"mix(by={by!r}) was given n_tokens={n_tokens} and n_documents={n_documents}; "
            f'by="tokens" needs n_tokens, by="rows" needs one of the two.'
        )
    check_limits(n_tokens, n_documents, tokenizer)
    if not proportions or min(proportions.values()) <= 0:
        raise ConfigError(f"Proportions must be positive, got {dict(proportions)}.")
    if seed is not None and isinstance(documents, Sequence):
        documents = random.Random(seed).sample(documents, len(documents))
    supply = _Supply(documents, proportions)
    if by == "tokens":
        assert n_tokens is not None and tokenizer is not None
        return _by_tokens(supply, _apportion(proportions, n_tokens), tokenizer)
    return _by_rows(supply, proportions, n_tokens, n_documents, tokenizer)


def take(
    documents: Iterable[Document],
    *,
    n_tokens: int | None = None,
    n_documents: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Document]:
    """The first documents up to a limit, or all; the last one is cut to fit ``n_tokens``.

    Raises:
        ConfigError: If there are too few, or both limits are given, or the tokenizer is missing.
    """
    check_limits(n_tokens, n_documents, tokenizer)
    result: list[Document] = []
    size = 0
    limit = n_tokens if n_tokens is not None else n_documents
    for document in documents:
        cost = 1
        if n_tokens is not None and tokenizer is not None:
            document, cost = _cut(document, n_tokens - size, tokenizer)
        if cost:
            result.append(document)
            size += cost
        if size == limit:
            return result
    if limit is not None:
        unit = "tokens" if n_tokens is not None else "documents"
        raise ConfigError(f"{limit} {unit} were asked for and the text has {size}: ask for fewer.")
    return result


def text_fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 over domains and texts in order, for the record of a run."""
    digest = hashlib.sha256()
    for document in documents:
        row = json.dumps([document.domain, document.text])
        digest.update(row.encode("ascii") + b"\n")
    return digest.hexdigest()


def check_limits(
    n_tokens: int | None, n_documents: int | None, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Refuse limits that are contradictory, not positive, or cannot be counted.

    Raises:
        ConfigError: If so.
    """
    if n_tokens is not None and n_documents is not None:
        raise ConfigError(f"Give n_tokens ({n_tokens}) or n_documents ({n_documents}), not both.")
    for name, value in (("n_tokens", n_tokens), ("n_documents", n_documents)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    if n_tokens is not None and tokenizer is None:
        raise ConfigError(f"n_tokens={n_tokens} needs a tokenizer to count with; none was given.")


class _Supply:
    """Documents by domain out of one stream, read no further than needed."""

    def __init__(self, documents: Iterable[Document], domains: Iterable[str]) -> None:
        self._stream = iter(documents)
        self._waiting: dict[str, deque[Document]] = {domain: deque() for domain in domains}

    def next(self, domain: str, done: str) -> Document:
        """The next document of a domain; ``done`` says in an error how far it has come."""
        queue = self._waiting[domain]
        while not queue:
            document = next(self._stream, None)
            if document is None:
                raise ConfigError(
                    f"The text has too little of the domain {domain!r}: it ran out at {done}. "
                    f"Ask for less, or give that domain a smaller share."
                )
            waiting = self._waiting.get(document.domain)
            if waiting is not None and len(waiting) < _WAITING:
                waiting.append(document)
        return queue.popleft()


def _by_tokens(
    supply: _Supply, quota: dict[str, int], tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    taken = dict.fromkeys(quota, 0)
    result: list[Document] = []
    while open_domains := [d for d in quota if taken[d] < quota[d]]:
        domain = min(open_domains, key=lambda d: taken[d] / quota[d])
        done = f"{taken[domain]} of {quota[domain]} tokens"
        room = quota[domain] - taken[domain]
        document, cost = _cut(supply.next(domain, done), room, tokenizer)
        if cost:
            result.append(document)
            taken[domain] += cost
    return result


def _by_rows(
    supply: _Supply,
    proportions: Mapping[str, float],
    n_tokens: int | None,
    n_documents: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Document]:
    taken = dict.fromkeys(proportions, 0)
    result: list[Document] = []
    size = 0
    while size < (n_tokens or n_documents or 0):
        # Sainte-Lague: every prefix has each domain within one row of its share.
        domain = min(taken, key=lambda d: (taken[d] + 0.5) / proportions[d])
        document, cost = supply.next(domain, f"{taken[domain]} documents"), 1
        if n_tokens is not None and tokenizer is not None:
            document, cost = _cut(document, n_tokens - size, tokenizer)
        if cost:
            result.append(document)
            taken[domain] += 1
            size += cost
    return result


def _apportion(proportions: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in these proportions that sum to ``total`` (largest remainders)."""
    scale = total / sum(proportions.values())
    exact = {domain: share * scale for domain, share in proportions.items()}
    whole = {domain: int(value) for domain, value in exact.items()}
    order = sorted(exact, key=lambda d: whole[d] - exact[d])
    for domain in order[: total - sum(whole.values())]:
        whole[domain] += 1
    return whole


def _cut(document: Document, room: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Document, int]:
    """The document, or its first ``room`` tokens, and how many tokens that is."""
    encoded = tokenizer(
        document.text,
        add_special_tokens=False,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,
    )
    ids = encoded["input_ids"]
    if len(ids) <= room:
        return document, len(ids)
    if tokenizer.is_fast:
        text = document.text[: encoded["offset_mapping"][room - 1][1]]
    else:
        text = str(tokenizer.decode(ids[:room]))
    return Document(text, document.domain), room
