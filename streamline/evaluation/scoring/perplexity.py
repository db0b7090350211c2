"""Perplexity of many paths on one text, in windows of a fixed length.

The text is cut into windows that do not overlap; each token of a window but the first is predicted
from the window's tokens before it. All paths walk each window together, so the layers they share
run once.

Example::

    windows = text_windows(running_text("wikitext2").text, tokenizer, length=2048)
    for path, result in zip(paths, perplexity(paths, windows)):
        path.name, result.value
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamline.distributed import Share, agreed, spread, woven
from streamline.engine.kernels import FastLinears
from streamline.engine.memory import Room
from streamline.engine.paths import Path, PathTrie
from streamline.errors import ConfigError
from streamline.evaluation.scoring.packing import Batch
from streamline.evaluation.scoring.score import modules_of, token_logprobs, tries_of
from streamline.evaluation.scoring.token_budget import TokenBudget

__all__ = ["Perplexity", "perplexity", "text_windows"]


@dataclass(frozen=True)
class Perplexity:
    """The loss of one path on a text.

    Attributes:
        nll: Summed negative log-likelihood of the scored tokens, in nats.
        n_tokens: Scored tokens.
    """

    nll: float
    n_tokens: int

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return self.nll / self.n_tokens

    @property
    def value(self) -> float:
        """Perplexity per token; infinite where the loss is too large to tell."""
        return _exp(self.mean_nll)


def text_windows(text: str, tokenizer: Any, length: int = 2048) -> Tensor:
    """Cut a text into windows of tokens.

    Args:
        text: The whole text.
        tokenizer: The model's tokenizer; no special tokens are added.
        length: Tokens of a window, at least 2.

    Returns:
        Token ids, [N, length], int64; what is left over at the end is dropped.

    Raises:
        ConfigError: If the text does not fill one window.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    n = len(ids) // length
    if length < 2 or n == 0:
        raise ConfigError(
            f"a text of {len(ids)} tokens cannot be cut into windows of {length}; windows need at "
            "least 2 tokens and the text at least one window"
        )
    return torch.tensor(ids[: n * length]).reshape(n, length)


def perplexity(
    paths: Sequence[Path],
    windows: Tensor,
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Perplexity]:
    """Score a text for every path.

    Args:
        paths: What to evaluate.
        windows: Token ids, [N, T], T at least 2.
        batch_tokens: Most tokens of a batch; a window is never cut. None takes the default of
            the device, a budget finds what suits it.
        progress: Told the windows done and in all after each batch.

    Returns:
        One result per path.

    Raises:
        ConfigError: If there is nothing to score.
    """
    if windows.dim() != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ConfigError(
            f"perplexity needs windows [N, T] with N >= 1 and T >= 2, got {list(windows.shape)}"
        )
    n, length = windows.shape
    n_tokens = n * (length - 1)
    if any(path.decoder.streamed for path in paths):
        from streamline.evaluation.streamed import nll_streamed

        nlls = nll_streamed(paths, windows, batch_tokens=batch_tokens, progress=progress)
        return [Perplexity(float(nll), n_tokens) for nll in nlls]
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    work = _Work(paths)
    tokens = budget.tokens(work.tries, work=windows.numel(), width=length, attempt=work.attempt)
    step = max(1, agreed(tokens) // length)
    shares = spread(_share, paths, windows, step, progress=progress)
    totals = np.zeros(len(paths))
    for nll in woven([nlls for nlls, _ in shares]):
        totals += nll
    budget.shrink(work.tries, length, min((x for _, x in shares if x), default=None))
    return [Perplexity(float(total), n_tokens) for total in totals]


class _Work:
    """Windows on their way through some paths.

    Args:
        paths: What to evaluate.

    Attributes:
        tries: The paths of each decoder.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._groups = tries_of(paths)
        self.tries = [trie for trie, _ in self._groups]

    @cached_property
    def _fast(self) -> list[FastLinears]:
        return [FastLinears(modules_of(trie), trie.decoder.model) for trie in self.tries]

    def answer(self, windows: Tensor) -> NDArray[np.float64]:
        """Summed NLL of some windows under each path, [paths]."""
        found = np.zeros(sum(len(members) for _, members in self._groups))
        for (trie, members), linears in zip(self._groups, self._fast, strict=True):
            with linears.active():
                found[members] = _batch_nll(trie, windows)
        return found

    def attempt(self, batch: Batch) -> object:
        """The same for a batch made up for a trial."""
        return self.answer(torch.from_numpy(batch.padded("tokens")))


def _share(
    share: Share,
    paths: Sequence[Path],
    windows: Tensor,
    step: int,
    *,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[NDArray[np.float64]], int | None]:
    """One process's batches: the NLL of each under each path, and what memory had room for."""
    work = _Work(paths)
    room = Room(
        size=lambda batch: batch.numel(),
        halves=lambda batch: batch.chunk(2) if len(batch) > 1 else (),
        describe=lambda batch: f"a window of {batch.shape[1]} tokens",
    )
    batches = share.of(torch.split(windows, step))
    total, done, out = sum(map(len, batches)), 0, []
    for batch in batches:
        out.append(np.sum([nll for _, nll in room.work(batch, work.answer)], axis=0))
        done += len(batch)
        if progress is not None:
            progress(done, total)
    return out, room.limit


@torch.inference_mode()
def _batch_nll(trie: PathTrie, batch: Tensor) -> NDArray[np.float64]:
    """Summed NLL of some windows under each path of a trie."""
    places = torch.arange(batch.numel()).reshape(batch.shape)[:, :-1].reshape(-1)
    targets = batch[:, 1:].reshape(-1)
    picks = torch.arange(len(places))
    out = np.zeros(len(trie.paths))

    def at_end(index: int, hidden: Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1])
        values, _ = token_logprobs(trie.decoder, flat, places, picks, targets, greedy=False)
        out[index] = -values.astype(np.float64).sum()

    trie.walk(trie.decoder.enter(batch), at_end)
    return out


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)
