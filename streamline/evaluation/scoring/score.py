"""Log-probabilities of many continuations under many paths, each distinct computation done once.

Requests come as token ids and are packed into prefix trees
(:mod:`streamline.evaluation.scoring.packing`); all paths walk a batch together as a trie
(:mod:`streamline.engine.paths`), so a token is embedded once, a layer that several paths share runs
once, and the final norm, head and softmax run only where a token is scored. The numbers are those
of scoring each request by itself.

Models that cannot take a tree mask (ALiBi, a sliding window shorter than the sequence) are given
plain padded sequences instead; the log names them once.

Example::

    requests = [Request("piqa", 0, i, context, option) for i, option in enumerate(options)]
    dense, pruned = score([dense_path(decoder), variant.path(decoder)], requests)
    dense.loglikelihood                                   # [R], float64

Notation: B rows, T tokens, D hidden size, V vocabulary, S scored tokens, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamline.distributed import WHOLE, Share, agreed, spread, team
from streamline.engine.compiled import CompiledLayers
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.kernels import FastLinears
from streamline.engine.memory import Room
from streamline.engine.paths import Path, PathTrie
from streamline.evaluation.scoring.batch_inputs import Scored, blocks_for, inputs_of
from streamline.evaluation.scoring.packing import Batch, Request, dealt, halved, pack
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.scoring.tree_attention import block_attention
from streamline.evaluation.scoring.tree_length import announce, tree_length

__all__ = ["Answers", "Progress", "Request", "TokenBudget", "score", "score_batches"]

Progress = Callable[[int, int], None]
"""Called after each batch with the tokens done and the tokens in all."""
_Part = tuple[NDArray[np.int64], list["Answers"]]

_LOGITS_ON_CPU, _LOGITS = 1 << 22, 1 << 26  # most logits held at once by the head


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

    def part(self, which: slice) -> Answers:
        """The answers to some of the requests."""
        return Answers(self.loglikelihood[which], self.greedy[which], self.n_tokens[which])


def score(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> list[Answers]:
    """Answer every request for every path.

    Args:
        paths: What to evaluate; paths of one decoder share what they have in common.
        requests: What to score, in any order and of any number of tasks.
        batch_tokens: Most tokens of a batch; None takes the default of the device, a budget
            finds what suits it.
        compiled: Whether layers are compiled first; see :mod:`streamline.engine.compiled`.
        progress: Told the tokens done and in all after each batch.

    Returns:
        One set of answers per path, in the order of ``requests``.
    """
    n = len(requests)
    out = [Answers(np.zeros(n), np.zeros(n, bool), np.zeros(n, np.int64)) for _ in paths]
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    found: Iterable[_Part]
    if team().share.size == 1 or any(path.decoder.streamed for path in paths):
        found = score_batches(
            paths, requests, batch_tokens=budget, compiled=compiled, progress=progress
        )
    else:
        work = _Work(paths, requests, compiled)
        tokens = agreed(work.tokens(budget))
        shares = spread(_share, paths, requests, tokens, compiled, progress=progress)
        found = [part for parts, _ in shares for part in parts]
        budget.shrink(work.tries, work.width, min((x for _, x in shares if x), default=None))
    for indices, answers in found:
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
    compiled: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.int64], list[Answers]]]:
    """The same as they come, task after task, for whoever stores them on the way.

    Yields:
        ``(indices of the requests answered, one set of answers per path)``.
    """
    if any(path.decoder.streamed for path in paths):
        from streamline.evaluation.streamed import score_streamed

        yield (
            np.arange(len(requests)),
            score_streamed(paths, requests, batch_tokens=batch_tokens, progress=progress),
        )
        return
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    work = _Work(paths, requests, compiled)
    yield from work.parts(work.tokens(budget), progress)
    budget.shrink(work.tries, work.width, work.limit)


class _Work:
    """Requests on their way through some paths.

    Args:
        paths: What to evaluate.
        requests: What to score.
        compiled: Whether layers are compiled first.

    Attributes:
        tries: The paths of each decoder.
        width: Tokens of the longest request.
        limit: Most tokens of a batch that memory has room for; None if it never ran out.
    """

    def __init__(
        self, paths: Sequence[Path], requests: Sequence[Request], compiled: bool = False
    ) -> None:
        self._requests = requests
        self._compiled = compiled
        self._n_paths = len(paths)
        self._groups = tries_of(paths)
        self.tries = [trie for trie, _ in self._groups]
        self._lengths = [len(r.context) + len(r.continuation) - 1 for r in requests]
        self.width = max(self._lengths, default=1)
        self.limit: int | None = None

    @cached_property
    def _fast(self) -> Sequence[FastLinears | CompiledLayers]:
        if self._compiled:
            return [CompiledLayers(modules_of(trie)[1:]) for trie in self.tries]
        return [FastLinears(modules_of(trie), trie.decoder.model) for trie in self.tries]

    def tokens(self, budget: TokenBudget) -> int:
        """Most tokens of a batch."""
        return budget.tokens(
            self.tries,
            work=sum(self._lengths),
            width=self.width,
            attempt=self._answer,
            tree=all(tree_length(trie.decoder) != 0 for trie in self.tries),
        )

    def parts(
        self, tokens: int, progress: Progress | None, share: Share = WHOLE
    ) -> Iterator[_Part]:
        """Answer a share of the batches, one after the other."""
        packed = batches_for([trie.decoder for trie in self.tries], self._requests, tokens)
        batches = share.of(dealt(packed, share.size))
        room = Room(
            size=lambda batch: batch.cost,
            halves=lambda batch: halved(batch, self._requests),
            describe=lambda batch: _described(self._requests[int(batch.requests[0])]),
        )
        total, done = sum(batch.n_tokens for batch in batches), 0
        for batch in batches:
            for part, answers in room.work(batch, self._answer):
                yield part.requests, answers
            self.limit = room.limit
            done += batch.n_tokens
            if progress is not None:
                progress(done, total)

    def _answer(self, batch: Batch) -> list[Answers]:
        answers: list[Answers] = [_NOTHING] * self._n_paths
        for (trie, members), linears in zip(self._groups, self._fast, strict=True):
            with linears.active():
                parts = _walk(trie, batch, in_blocks=not self._compiled)
            for index, part in zip(members, parts, strict=True):
                answers[index] = part
        return answers


def _share(
    share: Share,
    paths: Sequence[Path],
    requests: Sequence[Request],
    tokens: int,
    compiled: bool,
    *,
    progress: Progress | None,
) -> tuple[list[_Part], int | None]:
    """One process's batches, and what its memory had room for."""
    work = _Work(paths, requests, compiled)
    return list(work.parts(tokens, progress, share)), work.limit


def batches_for(
    decoders: Sequence[Decoder], requests: Sequence[Request], batch_tokens: int
) -> list[Batch]:
    """Pack requests in the way that all of some models can take; says which falls back."""
    limits = [tree_length(decoder) for decoder in decoders]
    for decoder, limit in zip(decoders, limits, strict=True):
        announce(decoder, limit, requests)
    known = [limit for limit in limits if limit is not None]
    return pack(
        requests,
        batch_tokens=batch_tokens,
        row_tokens=None if decoders[0].device.type == "cpu" else min(batch_tokens, 512),
        tree_length=min(known) if known else None,
        tree=0 not in limits,
    )


def _described(request: Request) -> str:
    """A request in words, for errors."""
    name = f"option {request.option} of question {request.doc_id} of {request.task}"
    return f"a request of {len(request.inputs)} tokens ({name})"


def tries_of(paths: Sequence[Path]) -> list[tuple[PathTrie, list[int]]]:
    """Paths grouped by decoder: each group's trie and the places of its paths."""
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(id(path.decoder), []).append(index)
    return [(PathTrie([paths[i] for i in members]), members) for members in groups.values()]


_NOTHING = Answers(np.zeros(0), np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64))


@torch.inference_mode()
def _walk(trie: PathTrie, batch: Batch, in_blocks: bool = True) -> list[Answers]:
    """Run one batch along every path."""
    decoder = trie.decoder
    wanted = Scored.of(batch)
    out: list[Answers] = [_NOTHING] * len(trie.paths)

    def at_end(index: int, hidden: Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1])
        logprobs, best = token_logprobs(decoder, flat, wanted.where, wanted.picks, wanted.targets)
        out[index] = summed(batch, logprobs, best)

    entry = decoder.enter(*inputs_of(batch, decoder))
    blocks = blocks_for(batch, decoder, entry.hidden) if in_blocks else None
    if blocks is None:
        trie.walk(entry, at_end)
    else:
        with block_attention(modules_of(trie), blocks):
            trie.walk(entry, at_end)
    return out


def summed(batch: Batch, logprobs: NDArray[np.float32], greedy: NDArray[np.bool_]) -> Answers:
    """Answers to a batch's requests from their scored tokens, [S] each."""
    starts = np.concatenate([[0], np.cumsum(batch.counts)[:-1]])
    return Answers(
        np.add.reduceat(logprobs.astype(np.float64), starts),
        np.logical_and.reduceat(greedy, starts),
        batch.counts,
    )


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
    most = _LOGITS_ON_CPU if device.type == "cpu" else _LOGITS
    step = max(1, most // vocabulary)
    values, tops = [], []
    for low in range(0, len(where), step):
        logits = decoder.leave(hidden[where[low : low + step].to(device)])
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        begin, end = torch.searchsorted(ordered, torch.tensor([low, low + step])).tolist()
        rows = (ordered[begin:end] - low).to(logits.device)  # the head may be on another device
        wanted = targets[by_place[begin:end]].to(logits.device)
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
