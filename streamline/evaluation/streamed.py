"""Scores, perplexities and losses of paths through a streamed model, in one pass over its weights.

The functions of :mod:`streamline.evaluation` and :mod:`streamline.methods.loss` come here by
themselves when a path's decoder is streamed; :func:`evaluate_streamed` answers the questions of all
tasks and all texts together, so that a whole evaluation reads each weight once. Batches and numbers
are those of a model in memory.

Example::

    answers, nlls = evaluate_streamed(paths, requests, [windows])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, PathTrie
from streamline.errors import UnsupportedModelError
from streamline.evaluation.scoring.batch_inputs import Scored, blocks_for, inputs_of
from streamline.evaluation.scoring.packing import Batch, Request
from streamline.evaluation.scoring.score import Answers, batches_for, summed, token_logprobs
from streamline.evaluation.scoring.token_budget import TokenBudget, default_batch_tokens
from streamline.evaluation.scoring.tree_attention import block_attention
from streamline.methods.loss import summed_loss
from streamline.streaming.order import Inputs, Job, walk

__all__ = ["evaluate_streamed", "losses_streamed", "nll_streamed", "score_streamed"]

Progress = Callable[[int, int], None]


class _Questions(Job):
    """A batch of requests."""

    def __init__(self, decoder: Decoder, batch: Batch, out: Sequence[Answers]) -> None:
        self.decoder = decoder
        self.batch = batch
        self.out = out
        self.wanted = Scored.of(batch)

    def inputs(self) -> Inputs:
        return inputs_of(self.batch, self.decoder)

    def around(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        like = torch.empty(0, dtype=self.decoder.dtype, device=self.decoder.device)
        blocks = blocks_for(self.batch, self.decoder, like)
        return nullcontext() if blocks is None else block_attention(modules, blocks)

    def keep(self, hidden: Tensor) -> Tensor:
        """The states that predict a scored token, [P, D]."""
        return hidden.reshape(-1, hidden.shape[-1])[self.wanted.where.to(hidden.device)]

    def finish(self, index: int, kept: Tensor) -> None:
        wanted, where = self.wanted, torch.arange(len(kept))
        found = token_logprobs(self.decoder, kept, where, wanted.picks, wanted.targets)
        part, whole = summed(self.batch, *found), self.out[index]
        whole.loglikelihood[self.batch.requests] = part.loglikelihood
        whole.greedy[self.batch.requests] = part.greedy
        whole.n_tokens[self.batch.requests] = part.n_tokens


class _Windows(Job):
    """Some windows of a text, [B, T]: the NLL of every token but the first of each."""

    def __init__(self, decoder: Decoder, tokens: Tensor, out: NDArray[np.float64]) -> None:
        self.decoder = decoder
        self.tokens = tokens
        self.out = out

    def inputs(self) -> Inputs:
        return self.tokens, None, None

    def keep(self, hidden: Tensor) -> Tensor:
        """The states of all tokens but the last of each window, [B * (T - 1), D]."""
        return hidden[:, :-1].reshape(-1, hidden.shape[-1])

    def finish(self, index: int, kept: Tensor) -> None:
        where = torch.arange(len(kept))
        targets = self.tokens[:, 1:].reshape(-1)
        values, _ = token_logprobs(self.decoder, kept, where, where, targets, greedy=False)
        self.out[index] += -values.astype(np.float64).sum()


class _Losses(_Windows):
    """The same by the loss function of the search methods."""

    def keep(self, hidden: Tensor) -> Tensor:
        """All states, [B, T, D]."""
        return hidden

    def finish(self, index: int, kept: Tensor) -> None:
        self.out[index] += summed_loss(self.decoder, kept, self.tokens)


def evaluate_streamed(
    paths: Sequence[Path],
    requests: Sequence[Request],
    texts: Sequence[Tensor] = (),
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> tuple[list[Answers], list[NDArray[np.float64]]]:
    """Answer everything for every path in one pass.

    Args:
        paths: Paths through one streamed decoder.
        requests: Requests of any number of tasks.
        texts: Windows of each text, [N, T], T at least 2.
        batch_tokens: Most tokens of a batch; a window is never cut. None suits the device.
        progress: Called with stages done and in all (embeddings, layers, head).

    Returns:
        One set of answers per path, and for each text the summed negative log-likelihood of each
        path, [paths].

    Raises:
        UnsupportedModelError: If a path enters another model.
        PlanError: If a path cannot be walked layer by layer.
        AssetError: If a weight cannot be read.
    """
    decoder = _only(paths)
    given = batch_tokens.given if isinstance(batch_tokens, TokenBudget) else batch_tokens
    budget = given or default_batch_tokens(decoder.device)
    n = len(requests)
    answers = [
        Answers(np.zeros(n), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64))
        for _ in paths
    ]
    totals = [np.zeros(len(paths)) for _ in texts]
    jobs: list[Job] = [
        _Questions(decoder, batch, answers)
        for batch in (batches_for([decoder], requests, budget) if requests else [])
    ]
    for windows, out in zip(texts, totals, strict=True):
        pieces = torch.split(windows, max(1, budget // windows.shape[1]))
        jobs += [_Windows(decoder, piece, out) for piece in pieces]
    walk(PathTrie(paths), jobs, progress)
    return answers, totals


def score_streamed(
    paths: Sequence[Path],
    requests: Sequence[Request],
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> list[Answers]:
    """:func:`streamline.evaluation.scoring.score.score` for a streamed model."""
    return evaluate_streamed(paths, requests, batch_tokens=batch_tokens, progress=progress)[0]


def nll_streamed(
    paths: Sequence[Path],
    windows: Tensor,
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Summed negative log-likelihood of a text under each path, [paths]."""
    (found,) = evaluate_streamed(
        paths, [], [windows], batch_tokens=batch_tokens, progress=progress
    )[1]
    return found


def losses_streamed(
    trie: PathTrie, batches: Tensor, rows: int, progress: Progress | None = None
) -> list[float]:
    """Summed loss of each path of a trie over token batches [N, T], ``rows`` sequences at once."""
    out = np.zeros(len(trie.paths))
    walk(
        trie, [_Losses(trie.decoder, piece, out) for piece in torch.split(batches, rows)], progress
    )
    return [float(value) for value in out]


def _only(paths: Sequence[Path]) -> Decoder:
    """The one decoder of some paths."""
    decoder = next(path.decoder for path in paths if path.decoder.streamed)
    other = [path.name for path in paths if path.decoder is not decoder]
    if other:
        raise UnsupportedModelError(
            f"{other[0]!r} is a model of its own and cannot be walked together with the streamed "
            f"{decoder.name}; evaluate it by itself"
        )
    return decoder
