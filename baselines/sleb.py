"""SLEB: remove one layer after another, each time the one whose loss without it is lowest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from streamline.calibration import Calibration, measure
from streamline.engine.budget import (
    Effort,
    layers_to_remove,
    round_flops,
    statistics_flops,
)
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.fields import Count, Fraction, Length, Natural
from streamline.hashing import content_key
from streamline.method import Pruned, Size
from streamline.methods.loss import loss_sample, sample_shape
from streamline.methods.loss_search import LossSearch, whole_heads
from streamline.methods.refitting import Refitting
from streamline.plan import Plan
from streamline.progress import part

from ._rounds import Round, from_extras, keep_rounds, notes, resumed, to_extras


@dataclass(frozen=True, kw_only=True)
class SLEB(Refitting):
    """Remove layers one by one, each time at least loss.

    Each round tries every remaining layer and removes the best. The rounds do not depend on the
    sparsity, so the first ones are searched once at calibration and serve every sparsity; pruning
    resumes there if more layers must be removed. A round costs one forward pass of a trie, about
    half the layer runs of trying the candidates one by one, and the whole head only for those that
    could be the best.

    Attributes:
        n_samples: Calibration sequences per trial; None for all.
        length: Tokens of each; None for all.
        keep_first: First layers that are never removed while others remain.
        keep_last: Last layers that are never removed while others remain.
        search_share: Fraction of the layers that calibration orders beforehand.
        refit: Whether the layers that are left are refitted in closed form on the calibration text
            (:mod:`streamline.methods.refit`). The paper does not.

    Reference:
        SLEB, arXiv:2402.09025, algorithm 1.

    Differs from the released code:
        Its 128 "samples" are lines of WikiText-2 joined into a few windows of 2048 tokens; here
        sequences come from the run's calibration texts, as many tokens by default as Shortened
        LLaMA looks at, because the search is quadratic in the number of layers.
    """

    name: ClassVar[str] = "sleb"
    paper: ClassVar[str] = "arXiv:2402.09025"
    supports_streaming: ClassVar[bool] = True

    n_samples: Count | None = 10
    length: Length | None = 128
    keep_first: Natural = 1
    keep_last: Natural = 1
    search_share: Fraction = 0.3

    def calibration_key(self) -> str:
        """One search per combination of the fields that it depends on."""
        fields = [
            self.n_samples, self.length, self.keep_first, self.keep_last, self.search_share
        ]  # fmt: skip
        return f"{self.name}-{content_key(fields)[:12]}"

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Search the first rounds, and measure the shared statistics on the same tokens."""
        tokens = loss_sample(batches, self.n_samples, self.length)
        rounds = self.search(decoder, tokens, round(self.search_share * decoder.n_layers))
        return replace(measure(decoder, tokens), extras=to_extras(rounds))

    def search(
        self, decoder: Decoder, tokens: Tensor, n_remove: int, done: Sequence[Round] = ()
    ) -> list[Round]:
        """Run the greedy rounds.

        Args:
            decoder: The dense model.
            tokens: Token ids of every trial, [N, T].
            n_remove: Rounds wanted in all.
            done: Rounds that were run before, with the same tokens.

        Returns:
            ``n_remove`` rounds, those done first.
        """
        rounds = resumed(done)[0][:n_remove]
        nodes = list(dense_path(decoder).nodes)
        for earlier in rounds:
            nodes = [node for node in nodes if node.layer != earlier.unit]
        losses = LossSearch([dense_path(decoder)], tokens)
        while len(rounds) < n_remove:
            positions = self._candidates(len(nodes))
            alive = Path(decoder, tuple(nodes))
            paths = [alive.without(k) for k in positions]
            with part(len(rounds), n_remove):
                found = losses.least(paths)
            rounds.append(Round.of(nodes.pop(positions[found.index]).layer, found))
            keep_rounds(rounds)
        return rounds

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Apply the first rounds of the search, resuming it where calibration stopped."""
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        tokens = loss_sample(batches, self.n_samples, self.length)
        rounds = self.search(decoder, tokens, n_remove, from_extras(calibration.extras))
        order = [each.unit for each in rounds]
        pruned = Pruned(Plan.drop(decoder.n_layers, order), notes=notes(rounds, order))
        return self.with_refit(decoder, pruned, batches)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The rounds, those beyond calibration's at pruning."""
        n, tokens = decoder.n_layers, math.prod(sample_shape(shape, self.n_samples, self.length))

        def rounds(first: int, stop: int) -> float:
            found = 0.0
            for gone in range(first, stop):
                tried = len(self._candidates(n - gone))
                heads = whole_heads(tried)
                left = 1 - (gone + 1) / n
                found += round_flops(decoder, tokens, left=left, tried=tried, heads=heads)
            return found

        early, n_remove = round(self.search_share * n), layers_to_remove(decoder, sparsity)
        refit = self.refit_effort(decoder, n_remove, n / (n_remove + 1), shape)
        return Effort(
            statistics_flops(decoder, tokens) + rounds(0, early),
            rounds(early, n_remove) + refit.prune,
            algebra=refit.algebra,
            passes=max(early, n_remove),
        )

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would be removed."""
        return Size.without(decoder, layers_to_remove(decoder, sparsity))

    def _candidates(self, n_alive: int) -> range:
        """Positions on the path that may be removed: the kept ends only if nothing else remains."""
        inner = range(self.keep_first, n_alive - self.keep_last)
        return inner if len(inner) else range(n_alive)
