"""A random draw of pieces out of packed documents, and what it is made of.

Example::

    pieces, facts = draw([Encoded("wiki", encoded(tokenizer, text))], 50, 2_048, seed=0)
    facts.largest            # fraction of the tokens that one document gives
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamline.sources.mixing import Counted, Encoded

__all__ = ["Drawn", "draw", "encoded"]


@dataclass(frozen=True)
class Drawn:
    """What a draw of running text is made of.

    Attributes:
        documents: Documents that have tokens in it.
        largest: The largest fraction of its tokens that is of one document.
        domains: Fraction of its tokens by domain.
        tokens: Tokens in all.
        samples: Sequences that they are in.
        pool: Documents that it was drawn from.
        counts: Documents that have tokens in it, by domain.
        counted: What the fractions of its mixture count, ``tokens`` or ``rows``; else None.
        promised: The fraction that the mixture has for each domain.
        spent: Domains that ran out while it was put together, with the documents that they had:
            the fractions are not met.
    """

    documents: int
    largest: float
    domains: dict[str, float]
    tokens: int
    samples: int
    pool: int
    counts: dict[str, int] = field(default_factory=dict)
    counted: Counted | None = None
    promised: dict[str, float] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def lopsided(self) -> bool:
        """Whether one document gives more than a fifth, and more than one sample."""
        return self.largest > max(0.2, 1 / self.samples)

    @property
    def lacking(self) -> str | None:
        """What there is of each domain where some have run out, in words; else None."""
        if not self.spent:
            return None
        rows = self.counted == "rows"
        parts = []
        for domain, promised in self.promised.items():
            count, share = self.counts.get(domain, 0), self.domains.get(domain, 0.0)
            tokens = round(share * self.tokens)
            share = count / sum(self.counts.values()) if rows else share
            parts.append(
                f"{domain} {count:,} documents with {tokens:,} tokens, "
                f"{100 * share:.3g} % for {100 * promised:.3g}"
            )
        return (
            f"{', '.join(self.spent)} ran out and the others went on, so that its fractions of "
            f"{'documents' if rows else 'tokens'} are not met: {'; '.join(parts)}"
        )


def encoded(tokenizer: Any, text: str) -> array[int]:
    """A document's tokens and the one that ends it."""
    ids = array("i", tokenizer(text, truncation=False, verbose=False).input_ids)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids


def draw(
    found: Sequence[Encoded], n_samples: int | None, length: int, seed: int
) -> tuple[Tensor, Drawn]:
    """Some of the pieces of packed documents, drawn without replacement.

    Args:
        found: The documents; they are joined, and the remainder behind the last piece left out.
        n_samples: Pieces, N; None for all.
        length: Tokens of a piece, T.
        seed: Seed of the draw.

    Returns:
        Token ids in random order, [N, T], int64, and what they are made of.
    """
    ends = np.cumsum([len(one.ids) for one in found])
    n_pieces = int(ends[-1]) // length
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n_pieces, generator=generator)[:n_samples]
    packed = np.concatenate([np.frombuffer(one.ids, dtype=np.int32) for one in found])
    pieces = torch.from_numpy(packed[: n_pieces * length]).view(n_pieces, length)

    chosen = np.zeros(n_pieces + 1, dtype=np.int64)  # the last for the remainder
    chosen[order.numpy()] = 1
    before = np.concatenate([[0], np.cumsum(chosen)])[:-1]
    piece, rest = np.divmod(np.concatenate([[0], np.minimum(ends, n_pieces * length)]), length)
    counts = np.diff(before[piece] * length + chosen[piece] * rest)
    total = max(1, int(counts.sum()))
    domains: dict[str, float] = {}
    for one, count in zip(found, counts.tolist(), strict=True):
        domains[one.domain] = domains.get(one.domain, 0.0) + count / total
    facts = Drawn(
        documents=int((counts > 0).sum()),
        largest=float(counts.max()) / total,
        domains={name: domains[name] for name in sorted(domains) if domains[name]},
        tokens=int(counts.sum()),
        samples=len(order),
        pool=len(found),
        counts=dict(
            sorted(Counter(one.domain for one, n in zip(found, counts, strict=True) if n).items())
        ),
    )
    return pieces[order].to(torch.int64), facts
