"""Log-probabilities of many continuations under many paths, each distinct computation done once.

Requests come as token ids and are packed into prefix trees (:mod:`streamline.evaluation.packing`);
all paths walk a batch together as a trie (:mod:`streamline.paths`), so a token is embedded once,
a layer that several paths share runs once, and the final norm, head and softmax run only where a
token is scored. The numbers are those of scoring each request by itself.

Models that cannot take a tree mask (ALiBi, a sliding window shorter than the sequence) are given
plain padded sequences instead; the log names them once.

Example::

    requests = [Request("piqa", 0, i, context, option) for i, option in enumerate(options)]
    dense, pruned = score([dense_path(decoder), variant.path(decoder)], requests)
    dense.loglikelihood                                   # [R], float64

Notation: B rows, T tokens, D hidden size, V vocabulary, S scored tokens, R requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamline.cpu_linear import FastLinears
from streamline.decoder import Decoder, submodule
from streamline.evaluation.packing import Batch, Request, halved, pack
from streamline.evaluation.room import Room
from streamline.evaluation.token_budget import TokenBudget
from streamline.evaluation.tree_attention import block_attention, blocks_of, split, tree_mask
from streamline.paths import Path, PathTrie

__all__ = ["Answers", "Progress", "Request", "TokenBudget", "score", "score_batches"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each batch with the tokens done and the tokens in all."""

_BLOCK = 96  # tokens of an attention block; measured on CPUs
_LOGITS = 1 << 22  # most logits held at once by the head
_named: set[str] = set()


@dataclass(frozen=True)
class Answers:
    """What one path says about some requests, in their order.

    Attributes:
        loglikelihood: Sum over the continuation of the log-probabilities (float32 log-softmax,
            summed in float64), [R].
        greedy: Whether each token of the continuation is the likeliest, [R].
        n_tokens: Tokens of the continuation, [R].
    """

    loglikelihood: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    n_tokens: NDArray[np.int64]


def tree_length(decoder: Decoder) -> int | None:
    """Longest sequence that may stand in a tree; 0 if none may, None if any.

    Attention that looks back a limited distance, and positions that are rescaled for long
    inputs, are exact in a tree only up to that length.
    """
    config = decoder.config
    if not decoder.family.tree or getattr(config, "alibi", False):
        return 0
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any("sliding" in kind or "chunked" in kind for kind in kinds)
    window = getattr(config, "sliding_window", None) if slides else None
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    rope = getattr(config, "rope_parameters", None) or {}
    rescaled = None
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        rescaled = rope.get(
            "original_max_position_embeddings", getattr(config, "max_position_embeddings", None)
        )
    limits = [int(limit) for limit in (window, rescaled) if limit is not None]
    return min(limits) if limits else None


def score(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> list[Answers]:
    """Answer every request for every path.

    Args:
        paths: What to evaluate; paths of one decoder share what they have in common.
        requests: What to score, in any order and of any number of tasks.
        batch_tokens: Most tokens of a batch; None takes the default of the device, a budget
            finds what suits it.
        progress: Told the tokens done and in all after each batch.

    Returns:
        One set of answers per path, in the order of ``requests``.
    """
    n = len(requests)
    out = [
        Answers(np.zeros(n), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64))
        for _ in paths
    ]
    for indices, answers in score_batches(
        paths, requests, batch_tokens=batch_tokens, progress=progress
    ):
        for whole, part in zip(out, answers, strict=True):
            whole.loglikelihood[indices] = part.loglikelihood
            whole.greedy[indices] = part.greedy
            whole.n_tokens[indices] = part.n_tokens
    return out


def score_batches(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.int64], list[Answers]]]:
    """The same as they come, task after task, for whoever stores them on the way.

    Yields:
        ``(indices of the requests answered, one set of answers per path)``.
    """
    tries = tries_of(paths)
    fast = [FastLinears(modules_of(trie), trie.decoder.model) for trie, _ in tries]

    def answer(batch: Batch) -> list[Answers]:
        answers: list[Answers] = [_NOTHING] * len(paths)
        for (trie, members), linears in zip(tries, fast, strict=True):
            with linears.active():
                parts = _walk(trie, batch)
            for index, part in zip(members, parts, strict=True):
                answers[index] = part
        return answers

    limits = [tree_length(trie.decoder) for trie, _ in tries]
    for (trie, _), limit in zip(tries, limits, strict=True):
        _announce(trie.decoder, limit, requests)
    known = [limit for limit in limits if limit is not None]
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    lengths = [len(request.context) + len(request.continuation) - 1 for request in requests]
    walked, width = [trie for trie, _ in tries], max(lengths, default=1)
    tree = 0 not in limits
    tokens = budget.tokens(walked, work=sum(lengths), width=width, attempt=answer, tree=tree)
    batches = pack(
        requests,
        batch_tokens=tokens,
        row_tokens=None if walked[0].decoder.device.type == "cpu" else min(tokens, 512),
        tree_length=min(known) if known else None,
        tree=tree,
    )
    room = Room(
        size=lambda batch: batch.cost,
        halves=lambda batch: halved(batch, requests),
        describe=lambda batch: _described(requests[int(batch.requests[0])]),
    )
    total, done = sum(batch.n_tokens for batch in batches), 0
    for batch in batches:
        for part, answers in room.work(batch, answer):
            yield part.requests, answers
        done += batch.n_tokens
        if progress is not None:
            progress(done, total)
    budget.shrink(walked, width, room.limit)


def _described(request: Request) -> str:
    """A request in words, for errors."""
    n_tokens = len(request.context) + len(request.continuation) - 1
    return (
        f"a request of {n_tokens} tokens (option {request.option} of question {request.doc_id} of "
        f"{request.task})"
    )


def tries_of(paths: Sequence[Path]) -> list[tuple[PathTrie, list[int]]]:
    """Paths grouped by decoder: each group's trie and the places of its paths."""
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(id(path.decoder), []).append(index)
    return [(PathTrie([paths[i] for i in members]), members) for members in groups.values()]


_NOTHING = Answers(np.zeros(0), np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64))


def _announce(decoder: Decoder, limit: int | None, requests: Sequence[Request]) -> None:
    """Say once when a model falls back to plain sequences."""
    if limit is None or decoder.name in _named:
        return
    longest = max((len(r.context) + len(r.continuation) - 1 for r in requests), default=0)
    if longest > limit:
        _named.add(decoder.name)
        which = "all sequences" if limit == 0 else f"sequences of more than {limit} tokens"
        logger.warning(
            "%s (%s): %s are scored one a row, because its attention cannot take a tree mask there",
            decoder.name,
            decoder.family.name,
            which,
        )


@torch.inference_mode()
def _walk(trie: PathTrie, batch: Batch) -> list[Answers]:
    """Run one batch along every path."""
    decoder = trie.decoder
    places, inverse = np.unique(batch.scored, return_inverse=True)
    where = torch.from_numpy(places)
    picks = torch.from_numpy(inverse.reshape(-1))
    targets = torch.from_numpy(batch.targets)
    out: list[Answers] = [_NOTHING] * len(trie.paths)

    def at_end(index: int, hidden: Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1])
        logprobs, best = token_logprobs(decoder, flat, where, picks, targets)
        starts = np.concatenate([[0], np.cumsum(batch.counts)[:-1]])
        out[index] = Answers(
            np.add.reduceat(logprobs.astype(np.float64), starts),
            np.logical_and.reduceat(best, starts),
            batch.counts,
        )

    tokens = torch.from_numpy(batch.padded("tokens"))
    if not batch.tree:
        lengths = torch.from_numpy(batch.lengths())
        mask = (torch.arange(batch.width) < lengths[:, None]).long()
        trie.walk(decoder.enter(tokens, mask if len(batch.rows) > 1 else None), at_end)
        return out
    ends = batch.padded("ends")
    for line, row in zip(ends, batch.rows, strict=True):
        line[len(row) :] = np.arange(len(row), batch.width) + 1
    positions = torch.from_numpy(batch.padded("positions"))
    mask = tree_mask(torch.from_numpy(ends).to(decoder.device), decoder.dtype)
    entry = decoder.enter(tokens, mask, positions)
    if len(batch.rows) == 1 and decoder.device.type == "cpu":
        blocks = blocks_of(split(ends[0], _BLOCK), ends[0], entry.hidden)
        with block_attention(modules_of(trie), blocks):
            trie.walk(entry, at_end)
    else:
        trie.walk(entry, at_end)
    return out


def modules_of(trie: PathTrie) -> list[nn.Module]:
    """Every distinct module of a trie's paths, the head first."""
    head = submodule(trie.decoder.model, trie.decoder.family.head)
    nodes = (node.module for path in trie.paths for node in path.nodes)
    return list({id(module): module for module in (head, *nodes)}.values())


def token_logprobs(
    decoder: Decoder,
    hidden: Tensor,
    where: Tensor,
    picks: Tensor,
    targets: Tensor,
    *,
    greedy: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-probabilities of single tokens, the head run once for each distinct place.

    Args:
        decoder: Gives the final norm and the head.
        hidden: Hidden states after the last layer, [places, D].
        where: Distinct rows of ``hidden`` that are needed, [P], rising.
        picks: For each scored token its index into ``where``, [S].
        targets: The scored tokens, [S].
        greedy: Whether to look for the likeliest tokens.

    Returns:
        Log-softmax in float32 at the targets, [S], and whether each is the likeliest token, [S];
        all False without ``greedy``.
    """
    device = hidden.device
    by_place = torch.argsort(picks, stable=True)
    ordered = picks[by_place]
    vocabulary = int(decoder.config.vocab_size)
    step = max(1, _LOGITS // vocabulary)
    values, tops = [], []
    for low in range(0, len(where), step):
        logits = decoder.leave(hidden[where[low : low + step].to(device)])
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        begin, end = torch.searchsorted(ordered, torch.tensor([low, low + step])).tolist()
        rows = (ordered[begin:end] - low).to(device)
        wanted = targets[by_place[begin:end]].to(device)
        chosen = logprobs[rows, wanted]
        best = torch.zeros_like(wanted, dtype=torch.bool)
        if greedy:
            best = chosen == logprobs.amax(dim=-1)[rows]
            # Looking for the place of the maximum is slow; it only matters where values are equal.
            best[best.clone()] = logprobs[rows[best]].argmax(dim=-1) == wanted[best]
        values.append(chosen.cpu())
        tops.append(best.cpu())
    order = torch.empty_like(by_place)
    order[by_place] = torch.arange(len(by_place))
    return torch.cat(values)[order].numpy(), torch.cat(tops)[order].numpy()
