"""BlockPruner: remove attentions and MLPs one by one, each time the one that is missed least.

The unit is a sublayer. A layer that has lost both is gone from the path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from streamline.calibration import Calibration, measure
from streamline.engine.budget import (
    Effort,
    check_sparsity,
    mean_layer_parameters,
    round_flops,
    statistics_flops,
)
from streamline.engine.decoder import Decoder
from streamline.fields import Count, Fraction, Length
from streamline.hashing import content_key
from streamline.method import Method, Pruned
from streamline.methods.loss import loss_sample, sample_shape
from streamline.methods.loss_search import LossSearch, whole_heads
from streamline.methods.sublayers import SUBLAYERS, Sublayers, Unit
from streamline.plan import Plan
from streamline.progress import part

from ._rounds import Round, from_extras, keep_rounds, notes, resumed, to_extras


@dataclass(frozen=True, kw_only=True)
class BlockPruner(Method):
    """Remove attentions and MLPs one by one, by loss.

    Rounds go on while removing the next unit brings the count nearer to the target;
    sublayers differ in size, so the count is solved in parameters and not in units. The rounds up
    to ``search_share`` are searched at calibration and serve every sparsity below it.

    Attributes:
        n_samples: Calibration sequences per trial; None for all.
        length: Tokens of each; None for all.
        width: Try only this many units per round, those with the lowest losses when they were
            last tried; None tries all, as the paper does.
        search_share: Sparsity up to which calibration searches beforehand.

    Reference:
        BlockPruner, arXiv:2406.10594, algorithm 1.

    Differs from the released code:
        Trials of a round are evaluated jointly, as one trie. Sequences come from the run's
        calibration texts, by default as many tokens as Shortened LLaMA looks at instead of the
        paper's 256 Alpaca samples of up to 2048 tokens, because the search is quadratic in
        the number of units.
    """

    name: ClassVar[str] = "blockpruner"
    paper: ClassVar[str] = "arXiv:2406.10594"
    supports_streaming: ClassVar[bool] = True

    n_samples: Count | None = 10
    length: Length | None = 128
    width: Count | None = None
    search_share: Annotated[Fraction, Field(lt=1)] = 0.25

    def calibration_key(self) -> str:
        """One search per combination of the fields."""
        fields = [self.n_samples, self.length, self.width, self.search_share]
        return f"{self.name}-{content_key(fields)[:12]}"

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Search the first rounds, and measure the shared statistics on the same tokens."""
        tokens = loss_sample(batches, self.n_samples, self.length)
        target = self.search_share * decoder.n_parameters()
        rounds, last_losses = self.search(Sublayers(decoder), tokens, target)
        last = torch.tensor(last_losses, dtype=torch.float64)
        extras = to_extras(rounds) | {"last_losses": last}
        return replace(measure(decoder, tokens), extras=extras)

    def search(
        self,
        sublayers: Sublayers,
        tokens: Tensor,
        target: float,
        done: Sequence[Round] = (),
        last_losses: Sequence[float] | None = None,
    ) -> tuple[list[Round], list[float]]:
        """Run the greedy rounds.

        Args:
            sublayers: The model.
            tokens: Token ids of every trial, [N, T].
            target: Parameters to remove.
            done: Rounds that were run before, with the same tokens.
            last_losses: The loss of each unit when it was last tried, from the search that ``done``
                comes from.

        Returns:
            The rounds, the last of which is one too many unless no unit is left (see
            :meth:`removed`), and each unit's loss when it was last tried (minus infinity before
            that). Without ``width`` only losses that could be the least of their round are
            measured.
        """
        untried = [-math.inf] * len(sublayers.units)
        rounds, last = resumed(done, untried if last_losses is None else last_losses)
        if len(self.removed(sublayers, rounds, target)) < len(rounds):
            return rounds, last
        expected = target * len(sublayers.units) / sublayers.n_removed(sublayers.units)
        losses = LossSearch([sublayers.path([unit]) for unit in sublayers.units], tokens)
        gone = [sublayers.units[each.unit] for each in rounds]
        while len(gone) < len(sublayers.units):
            alive = [i for i, unit in enumerate(sublayers.units) if unit not in gone]
            tried = sorted(alive, key=lambda i: last[i])
            if self.width is not None and rounds:
                tried = tried[: self.width]
            tried.sort()
            paths = [sublayers.path([*gone, sublayers.units[i]]) for i in tried]
            with part(len(gone), max(expected, len(gone) + 1)):
                found = losses.least(paths, all_losses=self.width is not None)
            for i, loss in zip(tried, found.losses, strict=True):
                last[i] = last[i] if loss is None else loss
            rounds.append(Round.of(tried[found.index], found))
            keep_rounds(rounds, last)
            best = sublayers.units[rounds[-1].unit]
            if not sublayers.nearer(gone, best, target):
                break
            gone.append(best)
        return rounds, last

    @staticmethod
    def removed(sublayers: Sublayers, rounds: Sequence[Round], target: float) -> list[Round]:
        """The first rounds, as long as each brings the removed parameters nearer to a number."""
        gone: list[Unit] = []
        for each in rounds:
            unit = sublayers.units[each.unit]
            if not sublayers.nearer(gone, unit, target):
                break
            gone.append(unit)
        return list(rounds[: len(gone)])

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Apply the first rounds of the search, resuming it where calibration stopped."""
        if check_sparsity(sparsity) == 0.0:
            return Pruned(Plan.dense(decoder.n_layers))
        sublayers = Sublayers(decoder)
        tokens = loss_sample(batches, self.n_samples, self.length)
        target = sparsity * decoder.n_parameters()
        extras = calibration.extras
        rounds, _ = self.search(
            sublayers, tokens, target, from_extras(extras), extras["last_losses"].tolist()
        )
        rounds = self.removed(sublayers, rounds, target)
        units = [sublayers.units[each.unit] for each in rounds]
        return sublayers.pruned(units, notes(rounds, [list(unit) for unit in units]))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The rounds, as many as layers of that share have sublayers; the rest at pruning."""
        n = len(Sublayers(decoder).units)
        tokens = math.prod(sample_shape(shape, self.n_samples, self.length))

        def rounds(first: int, stop: int) -> float:
            found = 0.0
            for gone in range(first, stop):
                tried = n - gone
                if self.width is not None and gone:
                    tried = min(tried, self.width)
                heads = whole_heads(tried) if self.width is None else tried
                left = 1 - gone / n  # what has lost one sublayer is run too
                found += round_flops(decoder, tokens, left=left, tried=tried, heads=heads)
            return found

        unit = mean_layer_parameters(decoder) / len(SUBLAYERS)
        early, late = (
            min(n, 1 + round(share * decoder.n_parameters() / unit))
            for share in (self.search_share, sparsity)
        )
        return Effort(
            statistics_flops(decoder, tokens) + rounds(0, early),
            rounds(early, late),
            passes=max(early, late),
        )
