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

__all__ = ["Document", "first_documents", "mix", "text_fingerprint"]

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
    """Choose documents so that each domain has its fraction, spread evenly over the result.

    By tokens, each domain ends at exactly its fraction of ``n_tokens`` (the last document is
    truncated). By rows, documents are counted, whatever their length; ``n_tokens`` then only limits
    the total.

    Args:
        documents: The source; may be a stream, which is read only as far as needed.
        proportions: Domain -> fraction; scaled to sum to one. Other domains are left out.
        n_tokens: Size of the result in tokens.
        n_documents: Size of the result in documents, with ``by="rows"``.
        tokenizer: Counts the tokens; needed with ``n_tokens``.
        seed: Shuffles a sequence of documents first; None keeps the order. A stream is never
            shuffled here.
        by: What the fractions count.

    Returns:
        The mixture, in order.

    Raises:
        ConfigError: If the limits do not fit ``by``, a proportion is not positive, or a domain
            runs out before its fraction is reached; the message names it.
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


def first_documents(
    documents: Iterable[Document],
    *,
    n_tokens: int | None = None,
    n_documents: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Document]:
    """The first documents up to a limit, or all; the last one is truncated to fit ``n_tokens``.

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
            document, cost = _truncated(document, n_tokens - size, tokenizer)
        if cost:
            result.append(document)
            size += cost
        if size == limit:
            return result
    if limit is not None:
        unit = "tokens" if n_tokens is not None else "documents"
        raise ConfigError(f"{limit} {unit} are needed and the text has {size}: choose fewer.")
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
        """The next document of a domain; ``done`` is the progress that an error reports."""
        queue = self._waiting[domain]
        while not queue:
            document = next(self._stream, None)
            if document is None:
                raise ConfigError(
                    f"The text has too little of the domain {domain!r}: it ran out at {done}. "
                    f"Choose fewer tokens or documents, or give that domain a smaller fraction."
                )
            waiting = self._waiting.get(document.domain)
            if waiting is not None and len(waiting) < _WAITING:
                waiting.append(document)
        return queue.popleft()


def _by_tokens(
    supply: _Supply, quota: dict[str, int], tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    counts = dict.fromkeys(quota, 0)
    result: list[Document] = []
    while open_domains := [d for d in quota if counts[d] < quota[d]]:
        domain = min(open_domains, key=lambda d: counts[d] / quota[d])
        done = f"{counts[domain]} of {quota[domain]} tokens"
        missing = quota[domain] - counts[domain]
        document, cost = _truncated(supply.next(domain, done), missing, tokenizer)
        if cost:
            result.append(document)
            counts[domain] += cost
    return result


def _by_rows(
    supply: _Supply,
    proportions: Mapping[str, float],
    n_tokens: int | None,
    n_documents: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Document]:
    counts = dict.fromkeys(proportions, 0)
    result: list[Document] = []
    size = 0
    while size < (n_tokens or n_documents or 0):
        # Sainte-Lague: every prefix has each domain within one row of its fraction.
        domain = min(counts, key=lambda d: (counts[d] + 0.5) / proportions[d])
        document, cost = supply.next(domain, f"{counts[domain]} documents"), 1
        if n_tokens is not None and tokenizer is not None:
            document, cost = _truncated(document, n_tokens - size, tokenizer)
        if cost:
            result.append(document)
            counts[domain] += 1
            size += cost
    return result


def _apportion(proportions: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in these proportions that sum to ``total`` (largest remainders)."""
    scale = total / sum(proportions.values())
    exact = {domain: fraction * scale for domain, fraction in proportions.items()}
    whole = {domain: int(value) for domain, value in exact.items()}
    order = sorted(exact, key=lambda d: whole[d] - exact[d])
    for domain in order[: total - sum(whole.values())]:
        whole[domain] += 1
    return whole


def _truncated(
    document: Document, n_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Document, int]:
    """The document, or its first ``n_tokens`` tokens, and how many tokens that is."""
    encoded = tokenizer(
        document.text,
        add_special_tokens=False,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,
    )
    ids = encoded["input_ids"]
    if len(ids) <= n_tokens:
        return document, len(ids)
    if tokenizer.is_fast:
        text = document.text[: encoded["offset_mapping"][n_tokens - 1][1]]
    else:
        text = str(tokenizer.decode(ids[:n_tokens]))
    return Document(text, document.domain), n_tokens
