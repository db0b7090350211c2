"""A random draw of pieces out of packed documents, and what it is made of.

Example::

    pieces, facts = draw([Encoded("wiki", encoded(tokenizer, text))], 50, 2_048, seed=0)
    facts.largest            # fraction of the tokens that one document gives
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamline.sources.mixing import Encoded

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
    """

    documents: int
    largest: float
    domains: dict[str, float]
    tokens: int
    samples: int
    pool: int

    @property
    def lopsided(self) -> bool:
        """Whether one document gives more than a fifth, and more than one sample."""
        return self.largest > max(0.2, 1 / self.samples)


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
    )
    return pieces[order].to(torch.int64), facts
