"""Language-model loss of many paths at once: what every "try it and see" criterion scores by.

Paths that enter the same model share the layers of their common prefixes through the trie of
:mod:`streamline.engine.paths`; only each path's own rest and its head are run anew. The count of
layer runs is given beside what running every path on its own would have cost.

Example:
    scores = score_paths([pruned.path(decoder) for pruned in trials], batches)
    scores.losses[0], scores.layer_runs, scores.naive_layer_runs

Notation: N sequences, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.finite import not_finite
from streamline.engine.forward import TokenJob, run
from streamline.engine.head import summed_loss
from streamline.engine.paths import Path, tries_of
from streamline.engine.transfer import Later
from streamline.errors import ConfigError
from streamline.progress import tell


@dataclass(frozen=True)
class Scores:
    """Losses of some paths, and what finding them cost.

    Attributes:
        losses: Mean negative log-likelihood per predicted token of each path, in nats.
        n_tokens: Predicted tokens averaged over, N * (T - 1).
        layer_runs: Layer evaluations, one for each sequence that a layer ran on.
        naive_layer_runs: The same without sharing prefixes.
    """

    losses: list[float]
    n_tokens: int
    layer_runs: int
    naive_layer_runs: int


def path_losses(paths: Sequence[Path], batches: Tensor) -> list[float]:
    """Mean token loss of each path; see :func:`score_paths`."""
    return score_paths(paths, batches).losses


def score_paths(
    paths: Sequence[Path],
    batches: Tensor,
    *,
    batch_tokens: int = 4096,
) -> Scores:
    """Run many paths over token batches and average the next-token loss of each.

    Args:
        paths: Any paths; those of one decoder share their layers.
        batches: Token ids, [N, T], int64, with T at least 2.
        batch_tokens: Tokens of one forward pass (at least one sequence).

    Returns:
        One loss per path, in order, and the cost.

    Raises:
        ConfigError: If the sequences are too short to predict anything.
        NotFiniteError: If a loss is NaN or infinite.
    """
    check_length(batches)
    rows = max(1, batch_tokens // batches.shape[1])
    totals = [0.0] * len(paths)
    jobs = [_Loss(tokens) for tokens in torch.split(batches, rows)]
    for _, losses in run(paths, jobs, progress=tell):
        totals = [total + loss for total, loss in zip(totals, losses, strict=True)]
    require_finite(totals, paths, batches)
    n_tokens = len(batches) * (batches.shape[1] - 1)
    tries = [trie for trie, _ in tries_of(paths)]
    return Scores(
        losses=[total / n_tokens for total in totals],
        n_tokens=n_tokens,
        layer_runs=len(batches) * sum(trie.n_runs for trie in tries),
        naive_layer_runs=len(batches) * sum(trie.n_naive_runs for trie in tries),
    )


@dataclass(frozen=True)
class _Loss(TokenJob):
    """Some sequences, [B, T]: the summed loss of every token but the first of each."""

    def answer(self, decoder: Decoder, kept: Tensor) -> Tensor:
        return summed_loss(decoder, kept, self.tokens)

    def combine(self, answers: list[Any]) -> Later:
        return Later(answers, lambda losses: [float(loss) for loss in losses])

    def split(self) -> Sequence[_Loss]:
        return self.halves()


def require_finite(losses: Sequence[float], paths: Sequence[Path], tokens: Tensor) -> None:
    """Refuse losses that are not finite: what overflows may be the best of all.

    Args:
        losses: Of the paths.
        paths: What was scored.
        tokens: Token ids that were scored, [N, T].

    Raises:
        NotFiniteError: With the path and the layer.
    """
    for loss, path in zip(losses, paths, strict=True):
        if not math.isfinite(loss):
            name = f" of {path.name}" if path.name else ""
            what = f"prune: the loss{name} on calibration sequence {{}}"
            raise not_finite(what, path, torch.split(tokens, 1))


def check_length(tokens: Tensor) -> None:
    """Refuse token ids [N, T] in which nothing can be predicted.

    Raises:
        ConfigError: If there is no sequence, or none of two tokens.
    """
    if tokens.shape[1] < 2 or not len(tokens):
        raise ConfigError(
            f"a loss needs sequences of at least 2 tokens, got a batch of {list(tokens.shape)}"
        )


def loss_sample(batches: Tensor, n_samples: int | None, length: int | None) -> Tensor:
    """The first sequences of the calibration tokens, cut short: what a loss criterion looks at.

    Args:
        batches: Calibration tokens, [N, T].
        n_samples: Sequences to use, or None for all.
        length: Tokens of each to use, or None for all.

    Returns:
        Token ids of at most that shape.

    Raises:
        ConfigError: If nothing would be left to predict.
    """
    if (n_samples is not None and n_samples < 1) or (length is not None and length < 2):
        raise ConfigError(
            f"a loss needs at least 1 sequence of 2 tokens, got n_samples={n_samples} and "
            f"length={length}"
        )
    return batches[:n_samples, :length]


def sample_shape(
    shape: tuple[int, int], n_samples: int | None, length: int | None
) -> tuple[int, int]:
    """Sequences, and tokens of each, that :func:`loss_sample` takes of so many."""
    rows, width = shape
    return min(rows, n_samples or rows), min(width, length or width)
