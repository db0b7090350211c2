"""Perplexity of many paths on one text, in windows of a fixed length.

The text is cut into windows that do not overlap; each token of a window but the first is predicted
from the window's tokens before it. All paths run each window together, so the layers they share
run once.

Example::

    windows = text_windows(running_text("wikitext2").text, tokenizer, length=2048)
    for path, result in zip(paths, perplexity(paths, windows)):
        path.name, result.value
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamline.distributed.work import shared
from streamline.engine.decoder import Decoder
from streamline.engine.forward import OnProgress, TokenJob, attempt, run
from streamline.engine.head import token_logprobs
from streamline.engine.memory import BatchLimit
from streamline.engine.paths import Path
from streamline.engine.transfer import Later
from streamline.errors import ConfigError
from streamline.evaluation.scoring.packing import Batch
from streamline.evaluation.scoring.token_budget import TokenBudget

__all__ = ["Perplexity", "Windows", "perplexity", "text_windows", "window_jobs"]


@dataclass(frozen=True)
class Perplexity:
    """The loss of one path on a text.

    Attributes:
        nll: Summed negative log-likelihood of the scored tokens, in nats.
        n_tokens: Scored tokens.
        stderr: Standard error of ``mean_nll``, in nats, the windows taken as independent; None
            for one window.
        window_nll: Mean NLL of a token of each window, in nats: two models' windows are paired.
    """

    nll: float
    n_tokens: int
    stderr: float | None = None
    window_nll: tuple[float, ...] = ()

    @classmethod
    def of_windows(cls, sums: NDArray[np.float64], length: int) -> Perplexity:
        """The loss of a text.

        Args:
            sums: Of each window the summed NLL, [N].
            length: Tokens of a window, of which all but the first are scored.
        """
        means = sums / (length - 1)
        stderr = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
        nll = math.fsum(sums.tolist())  # whatever the batches were
        return cls(nll, len(means) * (length - 1), stderr, tuple(means.tolist()))

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return self.nll / self.n_tokens

    @property
    def value(self) -> float:
        """Perplexity per token; infinite where the loss is too large."""
        return _exp(self.mean_nll)


def text_windows(text: str, tokenizer: Any, length: int = 2048) -> Tensor:
    """Cut a text into windows of tokens.

    Args:
        text: The whole text.
        tokenizer: The model's tokenizer; no special tokens are added.
        length: Tokens of a window, at least 2.

    Returns:
        Token ids, [N, length], int64; the remainder at the end is dropped.

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
    progress: OnProgress | None = None,
) -> list[Perplexity]:
    """Score a text for every path.

    Args:
        paths: What to evaluate.
        windows: Token ids, [N, T], T at least 2.
        batch_tokens: Most tokens of a batch; a window is never split. None for the default of
            the device, a budget finds what suits it.
        progress: Called with the tokens done and in all after each batch.

    Returns:
        One result per path.

    Raises:
        ConfigError: If there is nothing to score.
    """
    if windows.dim() != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ConfigError(
            f"perplexity needs windows [N, T] with N >= 1 and T >= 2, got {list(windows.shape)}"
        )
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    length = windows.shape[1]
    limit = BatchLimit()
    jobs = window_jobs(paths, windows, budget)
    found = [sums for _, sums in run(paths, jobs, limit=limit, progress=progress)]
    budget.shrink(paths, length, limit.tokens)
    return [Perplexity.of_windows(sums, length) for sums in np.concatenate(found, axis=1)]


@dataclass(frozen=True)
class Windows(TokenJob):
    """Some windows of a text, [B, T]: for each path a window's NLL of all tokens but the first."""

    def keep(self, hidden: Tensor) -> Tensor:
        """The states of all tokens but the last of each window, [B * (T - 1), D]."""
        return hidden[:, :-1].reshape(-1, hidden.shape[-1])

    def answer(self, decoder: Decoder, kept: Tensor) -> Tensor:
        """Log-probabilities of the tokens, [B * (T - 1)]."""
        targets = self.tokens[:, 1:].reshape(-1)
        picks = torch.arange(len(kept))
        return token_logprobs(decoder, kept, picks, targets, greedy=False)[0]

    def combine(self, answers: list[Any]) -> Later:
        """Of each window the NLL, in nats, summed in float64, [B] each."""
        return Later(answers, lambda tensors: [self._sums(tensor.numpy()) for tensor in tensors])

    def _sums(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        losses = -values.astype(np.float64)
        return np.asarray(losses.reshape(len(self.tokens), -1).sum(axis=1), dtype=np.float64)

    def split(self) -> Sequence[Windows]:
        """Half of the windows each, or nothing for one."""
        return self.halves()

    def describe(self) -> str:
        """The window that stands alone."""
        return f"a window of {self.tokens.shape[1]} tokens"


def window_jobs(
    paths: Sequence[Path], windows: Tensor, budget: TokenBudget, *, compiled: bool = False
) -> list[Windows]:
    """Windows as jobs of the engine, in batches that suit the device.

    Args:
        paths: What will be evaluated.
        windows: Token ids, [N, T].
        budget: Says how many tokens a batch may have; a window is never cut.
        compiled: Whether layers will be compiled.
    """
    length = windows.shape[1]

    def trial(batch: Batch) -> object:
        job = Windows(torch.from_numpy(batch.padded("tokens")))
        return attempt(paths, job, compiled=compiled)

    tokens = shared(lambda: budget.tokens(paths, work=windows.numel(), width=length, attempt=trial))
    return [Windows(part) for part in torch.split(windows, max(1, tokens // length))]


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)
