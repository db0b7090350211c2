"""Log-probabilities of many continuations under many paths, each distinct computation done once.

Requests come as token ids and are packed into prefix trees
(:mod:`streamline.evaluation.scoring.packing`); all paths run a batch together
(:mod:`streamline.engine.forward`), so a token is embedded once, a layer that several paths share
runs once, and the final norm, head and softmax run only where a token is scored. The numbers are
those of scoring each request by itself.

Models that do not support a tree mask (ALiBi, a sliding window shorter than the sequence) are given
plain padded sequences instead; the log names them once.

Example::

    requests = [Request("piqa", 0, i, context, option) for i, option in enumerate(options)]
    dense, pruned = score([dense_path(decoder), variant.path(decoder)], requests)
    dense.loglikelihood                                   # [R], float64

Notation: B rows, T tokens, D hidden size, V vocabulary, S scored tokens, R requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamline.distributed.work import shared
from streamline.engine.decoder import Decoder
from streamline.engine.forward import Inputs, Job, OnProgress, attempt, run
from streamline.engine.head import token_logprobs
from streamline.engine.memory import BatchLimit
from streamline.engine.paths import Path, tries_of
from streamline.engine.transfer import Later, onto
from streamline.evaluation.scoring.batch_inputs import Scored, blocks_for, inputs_of
from streamline.evaluation.scoring.packing import Batch, Request, pack, split_batch
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.scoring.tree_attention import block_attention
from streamline.evaluation.scoring.tree_length import announce, tree_length

__all__ = ["Likelihoods", "Request", "RequestBatch", "question_jobs", "score", "score_batches"]


@dataclass(frozen=True)
class Likelihoods:
    """One path's answers to some requests, in their order.

    Attributes:
        loglikelihood: Sum over the continuation of the log-probabilities (float32 log-softmax,
            summed in float64), [R].
        greedy: Whether each token of the continuation is the likeliest, [R].
        n_tokens: Tokens of the continuation, [R].
    """

    loglikelihood: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    n_tokens: NDArray[np.int64]

    @classmethod
    def empty(cls, n: int) -> Likelihoods:
        """A place for the answers to ``n`` requests."""
        return cls(np.zeros(n), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64))

    def put(self, indices: NDArray[np.int64], part: Likelihoods) -> None:
        """Write the answers to some of the requests."""
        self.loglikelihood[indices] = part.loglikelihood
        self.greedy[indices] = part.greedy
        self.n_tokens[indices] = part.n_tokens


@dataclass(frozen=True)
class RequestBatch(Job):
    """A batch of requests: one :class:`Likelihoods` for each path.

    Attributes:
        batch: The packed requests.
        requests: Its requests by their index among all.
        in_blocks: Whether attention may be computed block by block.
    """

    batch: Batch
    requests: Mapping[int, Request]
    in_blocks: bool = True

    @classmethod
    def of(
        cls, batch: Batch, requests: Mapping[int, Request] | Sequence[Request], in_blocks: bool
    ) -> RequestBatch:
        """A batch with those of the requests that are in it."""
        return cls(batch, {int(i): requests[int(i)] for i in batch.requests}, in_blocks)

    @property
    def n_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.batch.cost

    @cached_property
    def _wanted(self) -> Scored:
        return Scored.of(self.batch)

    def inputs(self, decoder: Decoder) -> Inputs:
        """Tokens [B, T], tree or padding mask, positions."""
        return inputs_of(self.batch, decoder)

    def around(
        self, decoder: Decoder, modules: Iterable[nn.Module]
    ) -> AbstractContextManager[None]:
        """Attention in blocks, where the batch is one long row of trees on a CPU."""
        like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        blocks = blocks_for(self.batch, decoder, like) if self.in_blocks else None
        return nullcontext() if blocks is None else block_attention(modules, blocks)

    def keep(self, hidden: Tensor) -> Tensor:
        """The states that predict a scored token, [P, D]."""
        return hidden.reshape(-1, hidden.shape[-1])[onto(self._wanted.where, hidden.device)]

    def answer(self, decoder: Decoder, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Of each scored token its log-probability and whether it is the likeliest, [S] each."""
        return token_logprobs(decoder, kept, self._wanted.picks, self._wanted.targets)

    def combine(self, answers: list[Any]) -> Later:
        """The batch's answers by every path."""
        return Later([tensor for pair in answers for tensor in pair], self._likelihoods)

    def _likelihoods(self, tensors: list[Tensor]) -> list[Likelihoods]:
        starts = np.concatenate([[0], np.cumsum(self.batch.counts)[:-1]])
        values = [tensor.numpy() for tensor in tensors]
        return [
            Likelihoods(
                np.add.reduceat(logprobs.astype(np.float64), starts),
                np.logical_and.reduceat(best, starts),
                self.batch.counts,
            )
            for logprobs, best in zip(values[::2], values[1::2], strict=True)
        ]

    def split(self) -> Sequence[RequestBatch]:
        """Two batches that answer the same requests, or none for a single sequence."""
        parts = split_batch(self.batch, self.requests)
        return [RequestBatch.of(part, self.requests, self.in_blocks) for part in parts]

    def describe(self) -> str:
        """The request that stands alone."""
        request = self.requests[int(self.batch.requests[0])]
        name = f"option {request.option} of question {request.doc_id} of {request.task}"
        return f"a request of {len(request.inputs)} tokens ({name})"


def score(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    compiled: bool = False,
    progress: OnProgress | None = None,
) -> list[Likelihoods]:
    """Answer every request for every path.

    Args:
        paths: What to evaluate; paths of one decoder share what they have in common.
        requests: What to score, in any order and of any number of tasks.
        batch_tokens: Most tokens of a batch; None for the default of the device, a budget
            finds what suits it.
        compiled: Whether layers are compiled first; see :mod:`streamline.engine.kernels`.
        progress: Called with the tokens done and in all after each batch.

    Returns:
        One set of answers per path, in the order of ``requests``.
    """
    out = [Likelihoods.empty(len(requests)) for _ in paths]
    found = score_batches(
        paths, requests, batch_tokens=batch_tokens, compiled=compiled, progress=progress
    )
    for indices, answers in found:
        for whole, part in zip(out, answers, strict=True):
            whole.put(indices, part)
    return out


def score_batches(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    compiled: bool = False,
    progress: OnProgress | None = None,
) -> Iterator[tuple[NDArray[np.int64], list[Likelihoods]]]:
    """The same as they come, task after task, for whoever stores them on the way.

    Yields:
        ``(indices of the requests answered, one set of answers per path)``.
    """
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    limit = BatchLimit()
    jobs = question_jobs(paths, requests, budget, compiled=compiled)
    for job, answers in run(paths, jobs, limit=limit, compiled=compiled, progress=progress):
        yield job.batch.requests, answers
    budget.shrink(paths, _width(requests), limit.tokens)


def question_jobs(
    paths: Sequence[Path],
    requests: Sequence[Request],
    budget: TokenBudget,
    *,
    compiled: bool = False,
) -> list[RequestBatch]:
    """Requests as jobs of the engine, in batches that suit the device.

    Args:
        paths: What will be evaluated.
        requests: What to score, in any order and of any number of tasks.
        budget: Says how many tokens a batch may have.
        compiled: Whether layers will be compiled.
    """
    if not requests:
        return []
    decoders = [trie.decoder for trie, _ in tries_of(paths)]

    def trial(batch: Batch) -> object:
        return attempt(paths, RequestBatch(batch, {}, not compiled), compiled=compiled)

    tokens = shared(
        lambda: budget.tokens(
            paths,
            work=sum(len(r.context) + len(r.continuation) - 1 for r in requests),
            width=_width(requests),
            attempt=trial,
            tree=all(tree_length(decoder) != 0 for decoder in decoders),
        )
    )
    batches = batches_for(decoders, requests, tokens)
    return [RequestBatch.of(batch, requests, not compiled) for batch in batches]


def _width(requests: Sequence[Request]) -> int:
    """Tokens of the longest request."""
    return max((len(r.context) + len(r.continuation) - 1 for r in requests), default=1)


def batches_for(
    decoders: Sequence[Decoder], requests: Sequence[Request], batch_tokens: int
) -> list[Batch]:
    """Pack requests in a form that all of some models support, and log which one falls back."""
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
