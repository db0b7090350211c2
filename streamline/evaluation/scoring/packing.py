"""Requests -> rows and batches in which every distinct token is computed once.

Requests of one task are sorted as token sequences, so that those with a common prefix are
neighbours: a question's options, sentences that differ in the middle, questions on one passage or
after one few-shot prompt. A run of neighbours becomes one row, several prefix trees written
depth first. In that order a token may look at exactly the tokens ``j`` with ``j <= i < end[j]``,
where ``end[j]`` is where the subtree of ``j`` ends; positions are depths.

The packing depends on the requests and the budget alone, never on the model's answers or on which
paths are run, so with one budget a run that was interrupted gives the same numbers as one that
was not; another budget changes them by rounding.

Example::

    batches = pack(requests, batch_tokens=1024)
    sum(batch.n_tokens for batch in batches), sum(batch.n_naive_tokens for batch in batches)

Notation: B rows, T tokens of the longest row, N tokens of a row, S scored tokens, R requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import chain

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Request", "Row", "pack", "split_batch"]

Ints = NDArray[np.int64]

_ROW_COST = 16  # what starting one more row costs, in tokens
_AT_ONCE = 4096  # sequences that are compared with their neighbours at once


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation to be scored after one context.

    Attributes:
        task: Requests of different tasks never share a batch.
        doc_id: Place of the question in its task.
        option: Place of the continuation among the question's.
        context: Token ids before the continuation, at least one.
        continuation: Token ids to be scored, at least one.
    """

    task: str
    doc_id: int
    option: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        if not self.context or not self.continuation:
            raise ValueError(
                f"option {self.option} of question {self.doc_id} of {self.task!r} needs at least "
                f"one token of context and of continuation, got {len(self.context)} and "
                f"{len(self.continuation)}; an empty context is given as the prefix token"
            )

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: everything but the last token."""
        return (*self.context, *self.continuation[:-1])


Requests = Mapping[int, Request] | Sequence[Request]
"""Requests by their index."""


@dataclass(frozen=True)
class Row:
    """Prefix trees, one after the other, depth first.

    Attributes:
        tokens: Token ids, [N].
        positions: Depth of each token in its tree, [N].
        ends: End (exclusive) of each token's subtree, [N].
        requests: Requests answered here, indices into the packed sequence, [R].
        counts: Scored tokens of each of them, [R].
        scored: For each scored token the place whose output predicts it, [S].
        targets: The scored token ids, [S].
        n_naive_tokens: Tokens that the requests would cost one at a time.
    """

    tokens: Ints
    positions: Ints
    ends: Ints
    requests: Ints
    counts: Ints
    scored: Ints
    targets: Ints
    n_naive_tokens: int

    def __len__(self) -> int:
        """Number of tokens, N."""
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together.

    Attributes:
        task: Their task.
        rows: The rows; shorter ones are padded on the right.
        tree: Whether rows hold prefix trees; else each is a single sequence.
    """

    task: str
    rows: tuple[Row, ...]
    tree: bool

    @cached_property
    def width(self) -> int:
        """Length of the longest row, T."""
        return max(len(row) for row in self.rows)

    @property
    def n_tokens(self) -> int:
        """Tokens computed, padding not counted."""
        return sum(len(row) for row in self.rows)

    @property
    def cost(self) -> int:
        """Tokens computed, padding counted: B * T."""
        return len(self.rows) * self.width

    @property
    def n_naive_tokens(self) -> int:
        """Tokens that the same requests would cost one at a time."""
        return sum(row.n_naive_tokens for row in self.rows)

    @cached_property
    def requests(self) -> Ints:
        """Requests answered, in the order of the answers, [R]."""
        return np.concatenate([row.requests for row in self.rows])

    @cached_property
    def counts(self) -> Ints:
        """Scored tokens of each request, [R]."""
        return np.concatenate([row.counts for row in self.rows])

    @cached_property
    def targets(self) -> Ints:
        """Scored token ids, request after request, [S]."""
        return np.concatenate([row.targets for row in self.rows])

    @cached_property
    def scored(self) -> Ints:
        """Places in the flattened [B * T] batch that predict them, [S]."""
        return np.concatenate([row.scored + i * self.width for i, row in enumerate(self.rows)])

    def padded(self, name: str, fill: int = 0) -> Ints:
        """One of the rows' token arrays as [B, T].

        Args:
            name: ``tokens``, ``positions`` or ``ends``.
            fill: Value after the end of a shorter row.
        """
        out = np.full((len(self.rows), self.width), fill, dtype=np.int64)
        for line, row in zip(out, self.rows, strict=True):
            line[: len(row)] = getattr(row, name)
        return out

    def lengths(self) -> Ints:
        """Tokens of each row, [B]."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)


def pack(
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    row_tokens: int | None = None,
    tree_length: int | None = None,
    tree: bool = True,
) -> list[Batch]:
    """Arrange requests in rows and batches.

    Args:
        requests: What is to be scored, in any order.
        batch_tokens: Most tokens of a batch, padding counted; a longer request goes alone.
        row_tokens: Most tokens of a row of several sequences; by default a batch is one row.
        tree_length: Sequences longer than this are not put into trees (sliding windows).
        tree: False for models that do not support tree masks: one sequence a row.

    Returns:
        Batches, task after task in the order of first appearance, each request in exactly one.

    Raises:
        ValueError: If a budget is not positive.
    """
    limit = min(batch_tokens, row_tokens or batch_tokens)
    if limit < 1:
        raise ValueError(f"batch_tokens and row_tokens must be positive, got {limit}")
    tasks: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        tasks.setdefault(request.task, []).append(index)
    batches: list[Batch] = []
    for task, members in tasks.items():
        trees: list[int] = []
        chains: list[int] = []
        for index in members:
            length = len(requests[index].context) + len(requests[index].continuation) - 1
            fits = tree and (tree_length is None or length <= tree_length)
            (trees if fits else chains).append(index)
        for kind, part in ((True, trees), (False, chains)):
            rows = list(_rows(requests, part, limit if kind else 0))
            batches += [Batch(task, group, kind) for group in _grouped(rows, batch_tokens)]
    return batches


def split_batch(batch: Batch, requests: Requests) -> tuple[Batch, ...]:
    """A batch in smaller ones that answer the same requests.

    Several rows become two batches; a single row of trees is split again, to half its length where
    the requests allow it.

    Args:
        batch: From :func:`pack`.
        requests: What was packed.

    Returns:
        At least two batches, or none if the batch is a single sequence.
    """
    if len(batch.rows) > 1:
        middle = len(batch.rows) // 2
        parts = (batch.rows[:middle], batch.rows[middle:])
        return tuple(Batch(batch.task, part, batch.tree) for part in parts)
    (row,) = batch.rows
    if not batch.tree or len(row) == max(len(requests[i].inputs) for i in row.requests):
        return ()
    cut = _rows(requests, [int(i) for i in row.requests], max(1, len(row) // 2))
    return tuple(Batch(batch.task, (part,), batch.tree) for part in cut)


def _rows(requests: Requests, members: list[int], limit: int) -> Iterator[Row]:
    """Cut the sorted sequences into rows; limit 0 means one leaf of the prefix tree a row."""
    if not members:
        return
    read = {index: requests[index].inputs for index in members}
    order = sorted(members, key=read.__getitem__)
    inputs = [read[index] for index in order]
    lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
    shared = _common(inputs, lengths)
    cuts = _cuts(lengths, shared, limit) if limit else _leaves(lengths, shared)
    for start, stop in zip(cuts, [*cuts[1:], len(order)], strict=True):
        chosen = [requests[index] for index in order[start:stop]]
        yield _row(order[start:stop], chosen, inputs[start:stop], shared[start:stop])


def _common(sequences: Sequence[tuple[int, ...]], lengths: Ints) -> Ints:
    """Length of the common prefix of each sequence with the one before it; 0 for the first."""
    found = np.zeros(len(sequences), dtype=np.int64)
    for start in range(0, len(sequences), _AT_ONCE):
        some = slice(max(0, start - 1), start + _AT_ONCE)  # and the last one of those before
        ids = np.fromiter(chain.from_iterable(sequences[some]), np.int64)
        sizes = lengths[some]
        begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        both = np.minimum(sizes[:-1], sizes[1:])  # places that two neighbours have
        if not len(both):
            continue
        firsts = np.concatenate([[0], np.cumsum(both)[:-1]])
        place = np.arange(both.sum()) - np.repeat(firsts, both)
        left = ids[np.repeat(begins[:-1], both) + place]
        right = ids[np.repeat(begins[1:], both) + place]
        differ = np.where(left != right, place, np.repeat(both, both))
        found[some][1:] = np.minimum.reduceat(differ, firsts)
    return found


def _leaves(lengths: Ints, shared: Ints) -> list[int]:
    """First member of each chain: a sequence joins the next if it is a prefix of it."""
    return [0, *(int(i) for i in range(1, len(lengths)) if shared[i] < lengths[i - 1])]


def _cuts(lengths: Ints, shared: Ints, limit: int) -> list[int]:
    """Where to begin rows so that as few tokens as possible are computed twice.

    A row from i to j costs the whole of sequence i and what each further one adds; beginning it
    at i repeats the ``shared[i]`` tokens that i has in common with i - 1. The best cuts under the
    limit are found exactly, from left to right.
    """
    n, again = len(lengths), shared.tolist()
    added = [0, *np.cumsum(lengths - shared).tolist()]  # [n + 1]
    first = [0] * (n + 1)
    begun: list[tuple[int, int]] = []  # a heap: what all costs if a row begins somewhere, and where
    best = 0
    for stop in range(1, n + 1):
        last = best + again[stop - 1] + _ROW_COST, stop - 1
        # A row that is too long up to here is so for all that follows.
        while begun and added[stop] - added[begun[0][1]] + again[begun[0][1]] > limit:
            heappop(begun)
        best, first[stop] = min([last, *begun[:1]])
        heappush(begun, last)
    cuts = []
    stop = n
    while stop > 0:
        stop = first[stop]
        cuts.append(stop)
    return cuts[::-1]


def _row(
    members: list[int], requests: list[Request], inputs: Sequence[tuple[int, ...]], shared: Ints
) -> Row:
    """Write sorted sequences as prefix trees."""
    tokens, positions, scored, targets = list[int](), list[int](), list[int](), list[int]()
    path: list[int] = []  # places of the current sequence's tokens
    ends: dict[int, int] = {}
    each = zip(requests, inputs, shared.tolist(), strict=True)
    for number, (request, ids, common) in enumerate(each):
        keep, size = common if number else 0, len(tokens)
        ends.update(dict.fromkeys(path[keep:], size))
        path[keep:] = range(size, size + len(ids) - keep)
        tokens += ids[keep:]
        positions += range(keep, len(ids))
        scored += path[len(ids) - len(request.continuation) :]
        targets += request.continuation
    ends.update(dict.fromkeys(path, len(tokens)))
    return Row(
        tokens=np.array(tokens, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        ends=np.array([ends[place] for place in range(len(tokens))], dtype=np.int64),
        requests=np.array(members, dtype=np.int64),
        counts=np.array([len(request.continuation) for request in requests], dtype=np.int64),
        scored=np.array(scored, dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
        n_naive_tokens=sum(map(len, inputs)),
    )


def _grouped(rows: list[Row], batch_tokens: int) -> Iterator[tuple[Row, ...]]:
    """Rows of similar length together, longest first, within the budget."""
    group: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if group and len(group[0]) * (len(group) + 1) > batch_tokens:
            yield tuple(group)
            group = []
        group.append(row)
    if group:
        yield tuple(group)
