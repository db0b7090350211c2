"""The path of least loss among many, round after round, mostly without the whole head.

A greedy search asks only which of its trials is best. With a large vocabulary most of a trial's
cost is the head, not the layers that are its own. The log-sum-exp over a few logits is a lower
bound of that over all, so a trial's loss is bounded from below by a head cut down to the tokens
that mattered before; only trials whose bound lies below the best whole loss get the whole head.
What is found, and its loss, are those of scoring every trial in full.

Example::

    search = LossSearch([dense_path(decoder)], tokens)
    found = search.least(trials)            # many rounds, with the same tokens
    trials[found.index], found.losses[found.index]

Notation: N sequences, T tokens, D hidden size, V vocabulary, P positions of a piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from streamline.distributed.team import team
from streamline.engine.decoder import submodule
from streamline.engine.forward import Depths, run
from streamline.engine.head import predicting
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Path, PathTrie
from streamline.engine.transfer import summed
from streamline.methods.loss import check_length, require_finite, score_paths
from streamline.progress import tell

__all__ = ["Found", "LossSearch", "whole_heads"]

#: The head is cut down to one in so many of its rows.
HEAD_DIVISOR = 12
#: Hidden states of all trials of a round are kept up to this size; else all are scored in full.
KEEP_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Found:
    """What a round found, and what it cost.

    Attributes:
        index: The path of least loss, the first of equal ones.
        losses: Mean negative log-likelihood per predicted token of each path, in nats; None for a
            path of which it is only known that its loss is not the least.
        layer_runs: Layer evaluations, one for each sequence that a layer ran on.
        naive_layer_runs: The same without sharing prefixes.
    """

    index: int
    losses: list[float | None]
    layer_runs: int
    naive_layer_runs: int

    @property
    def loss(self) -> float:
        """The least loss."""
        loss = self.losses[self.index]
        assert loss is not None
        return loss


def whole_heads(n_trials: int) -> float:
    """About how often a round of so many trials runs the whole head, cut ones added up."""
    return min(n_trials, 2 + n_trials / HEAD_DIVISOR)


class LossSearch:
    """Rounds of a search over paths of one decoder, on the same tokens.

    Weights are laid out for the processor once for all rounds, when the first is run.

    Args:
        paths: Paths that hold every module of the trials between them.
        tokens: Token ids of every trial, [N, T], int64, with T at least 2.
        batch_tokens: Tokens of one forward pass (at least one sequence).

    Raises:
        ConfigError: If the sequences are too short to predict anything.
    """

    def __init__(self, paths: Sequence[Path], tokens: Tensor, *, batch_tokens: int = 4096) -> None:
        check_length(tokens)
        self.decoder = paths[0].decoder
        self.tokens = tokens
        self.batch_tokens = batch_tokens
        self._head = submodule(self.decoder.model, self.decoder.family.head)
        self._narrow = _can_be_cut(self._head)
        self._paths = paths
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def least(self, paths: Sequence[Path], *, all_losses: bool = False) -> Found:
        """Find the path of least loss.

        Args:
            paths: The trials.
            all_losses: Whether the losses of the other paths are wanted too.

        Returns:
            Which one, and the losses that were needed to know it.

        Raises:
            NotFiniteError: If the loss of a path is NaN or infinite.
        """
        size = len(paths) * self.tokens.numel() * self.decoder.hidden_size
        small = size * self.decoder.dtype.itemsize <= KEEP_BYTES
        alone = team().size == 1  # several processes divide whole batches
        with self._fast.active():
            if all_losses or not (self._narrow and small and alone):
                scores = score_paths(paths, self.tokens, batch_tokens=self.batch_tokens)
                losses: list[float | None] = list(scores.losses)
                runs, naive = scores.layer_runs, scores.naive_layer_runs
            else:
                losses = self._bounded(self._ends(paths))
                known = {i: loss for i, loss in enumerate(losses) if loss is not None}
                require_finite([*known.values()], [paths[i] for i in known], self.tokens)
                trie = PathTrie(paths)
                runs, naive = (len(self.tokens) * n for n in (trie.n_runs, trie.n_naive_runs))
        return Found(_least(losses), losses, runs, naive)

    @cached_property
    def _fast(self) -> FastLinears:
        modules = [self._head, *(node.module for path in self._paths for node in path.nodes)]
        return FastLinears(modules, self.decoder.model)

    def _ends(self, paths: Sequence[Path]) -> list[list[tuple[Tensor, Tensor]]]:
        """Each path's hidden states before the head, and the tokens to be predicted, in pieces."""
        ends: list[list[tuple[Tensor, Tensor]]] = [[] for _ in paths]
        rows = max(1, self.batch_tokens // self.tokens.shape[1])
        jobs = [Depths(tokens) for tokens in torch.split(self.tokens, rows)]
        for job, states in run(paths, jobs, progress=tell):
            for end, hidden in zip(ends, states, strict=True):
                end += predicting(self.decoder, hidden, job.tokens)
        return ends

    def _bounded(self, ends: list[list[tuple[Tensor, Tensor]]]) -> list[float | None]:
        """Whole losses of the paths that could be the best, in the order of their bounds."""
        losses: list[float | None] = [None] * len(ends)
        if not self._kept:  # the layers in the middle are the least missed
            middle = len(ends) // 2
            losses[middle] = self._whole(ends[middle], learn=True)
        slack = 1e-4 if self.decoder.dtype in (torch.float32, torch.float64) else 0.1
        bounds = [bound - slack for bound in self._bounds(ends)]
        learn = True
        for index in sorted(range(len(ends)), key=bounds.__getitem__):
            best = losses[_least(losses)]
            if best is not None and bounds[index] > best:
                break
            if losses[index] is None:
                losses[index] = self._whole(ends[index], learn=learn)
                learn = False
        return losses

    def _whole(self, end: list[tuple[Tensor, Tensor]], learn: bool) -> float:
        """The mean loss of one path; with ``learn``, also the head's rows that mattered to it."""
        losses, kept = list[Tensor](), list[Tensor]()
        for states, targets in end:
            logits = self.decoder.leave(states).float()
            wanted = targets.to(logits.device)
            losses.append(cross_entropy(logits, wanted, reduction="sum"))
            if learn:
                mass = logits.softmax(-1).sum(0).index_fill(0, wanted, math.inf)
                n_rows = max(len(mass) // HEAD_DIVISOR, min(len(mass), len(wanted)))
                kept.append(mass.topk(n_rows).indices.sort().values)
        if learn:
            self._kept = kept
        n_tokens = len(self.tokens) * (self.tokens.shape[1] - 1)
        return summed(losses) / n_tokens

    def _bounds(self, ends: list[list[tuple[Tensor, Tensor]]]) -> list[float]:
        """A number for each path that its mean loss is not below, but for rounding."""
        losses: list[list[Tensor]] = [[] for _ in ends]
        for place, rows in enumerate(self._kept):
            targets = torch.searchsorted(rows, ends[0][place][1].to(rows.device))
            with _cut(self._head, rows):
                for end, found in zip(ends, losses, strict=True):
                    logits = self.decoder.leave(end[place][0]).float()
                    found.append(cross_entropy(logits, targets, reduction="sum"))
        # All are asked for together: the device is waited for once.
        totals = [sum(each) for each in torch.stack([torch.stack(e) for e in losses]).tolist()]
        n_tokens = len(self.tokens) * (self.tokens.shape[1] - 1)
        return [total / n_tokens if math.isfinite(total) else -math.inf for total in totals]


def _least(losses: Sequence[float | None]) -> int:
    """Index of the least loss; what is unknown or no number counts as infinite."""

    def key(index: int) -> float:
        loss = losses[index]
        return math.inf if loss is None or math.isnan(loss) else loss

    known = [index for index, loss in enumerate(losses) if loss is not None]
    return min(known or [0], key=key)


def _can_be_cut(head: nn.Module) -> bool:
    """Whether a head is a plain linear layer with its weights at hand."""
    return (
        type(head) is nn.Linear
        and not head.weight.is_meta
        and not hasattr(head, "_hf_hook")
        and "forward" not in head.__dict__
    )


@contextmanager
def _cut(head: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let a head give the logits of some tokens only, in their order."""
    assert isinstance(head, nn.Linear)
    weight = head.weight[rows]
    bias = None if head.bias is None else head.bias[rows]
    before = head.__dict__.get("forward")
    try:
        head.__dict__["forward"] = lambda hidden: linear(hidden, weight, bias)
        yield
    finally:
        if before is None:
            head.__dict__.pop("forward", None)
        else:
            head.__dict__["forward"] = before
