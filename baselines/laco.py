"""LaCo: collapse runs of layers into one, as long as the model's output stays similar.

From the top down, the differences of the next few layers are added to a layer, and those layers are
removed. A trial is accepted if the final hidden states of some sentences stay similar enough to the
dense model's. The threshold decides how much is removed, so it is searched for a sparsity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, reading_flops, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.fields import Count, Natural
from streamline.method import Method, Pruned, Size
from streamline.methods.layers import odd_layer
from streamline.methods.loss import loss_sample, sample_shape
from streamline.plan import Plan, Step
from streamline.progress import part

from ._collapsing import Collapse, Outcome, Rule, highest_threshold


@dataclass(frozen=True, kw_only=True)
class LaCo(Method):
    """Merge neighbouring layers into one, to a threshold.

    For the wanted C and I, and for every smaller C with I = 1, the highest threshold is searched at
    which enough layers are removed. Of these models the one most similar to the dense model is used
    (or, by ``choose``, the first that reaches the count); its C, I and T are in the notes. On
    small models the sum of many differences can destroy the model, as with C = 4 on SmolLM2-135M.

    A merge makes ``W_l + sum_k (W_{l+k} - W_l)`` of a layer's projections and those of the next
    C - 1; the last one folds fewer layers if need be.

    Attributes:
        layers_per_merge: C, layers that become one.
        interval: I, layers to step down after an accepted merge.
        lowest: L, lowest layer to merge into.
        highest: H, end of the first merge; None for the last layer, which is then not merged.
        n_samples: Calibration sequences.
        length: Tokens of each.
        rule: ``"paper"`` or ``"release"``; see
            :func:`streamline.baselines._collapsing.merge_layers`.
        choose: ``"similar"`` tries all combinations and uses the most similar model; ``"wanted"``
            uses the wanted C and I, and smaller ones only if those cannot reach the count.

    Reference:
        LaCo, arXiv:2402.11187, algorithm 1; C, I and L as reported for 7B models.

    Differs from the paper:
        The threshold is the unknown, found for the target sparsity, and merging stops as soon as
        the sparsity is met. Short sequences of the run's calibration texts replace the paper's few
        Wikipedia sentences. Biases of projections are merged like weights, which the models of the
        paper do not have. Mixtures of experts are unsupported: their experts are in no order.
    """

    name: ClassVar[str] = "laco"
    paper: ClassVar[str] = "arXiv:2402.11187"

    layers_per_merge: Count = 4
    interval: Count = 2
    lowest: Natural = 1
    highest: Count | None = None
    n_samples: Count = 5
    length: Count = 20
    rule: Rule = "paper"
    choose: Literal["similar", "wanted"] = "similar"

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models whose layers cannot be added to each other."""
        if decoder.family.mixture:
            return (
                f"{self.name} adds up the projections of neighbouring layers, and an expert of one "
                f"layer of {decoder.family.name} has no counterpart in the next"
            )
        odd = odd_layer(decoder, alike=True)
        if odd is not None:
            return f"{self.name} adds up the projections of neighbouring layers, and {odd}"
        return super().unsupported(decoder)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Search the threshold and return the merged blocks.

        Raises:
            UnsupportedModelError: If no merging can remove as many layers.
        """
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        trials = Collapse(decoder, loss_sample(batches, self.n_samples, self.length), self.rule)
        outcome = self.search(trials, n_remove)
        blocks = trials.blocks(outcome.merges)
        steps = tuple(
            Step(block.span.start)
            if len(block.span) == 1
            else Step(block.span.start, "merged", block.span)
            for block in blocks
        )
        modules = {i: b.module for i, b in enumerate(blocks) if len(b.span) > 1}
        plan = Plan(decoder.n_layers, steps, "merged")
        return Pruned(plan, modules, notes=_notes(outcome, trials))

    def search(self, trials: Collapse, n_remove: int) -> Outcome:
        """The combination of C, I and T that removes ``n_remove`` layers.

        Raises:
            UnsupportedModelError: If no merging can remove as many layers.
        """
        n_layers = trials.decoder.n_layers
        highest = n_layers - 1 if self.highest is None else min(self.highest, n_layers)
        found: list[Outcome] = []
        settings = self._settings(highest, n_layers)
        for n, (c, interval, lowest, top) in enumerate(settings):
            if found and (self.choose == "wanted" or (lowest, top) != (self.lowest, highest)):
                break
            bounds = {"layers_per_merge": c, "interval": interval, "lowest": lowest, "highest": top}
            with part(n, len(settings)):
                outcome = highest_threshold(trials, n_remove, bounds)
            if outcome is not None:
                found.append(outcome)
        if found:
            return max(found, key=lambda outcome: outcome.similarities[-1])
        raise UnsupportedModelError(
            f"{self.name} with layers_per_merge={self.layers_per_merge} cannot remove {n_remove} "
            f"of {n_layers} layers of {trials.decoder.name}: choose a lower sparsity, or raise "
            "layers_per_merge to at least 2"
        )

    def _settings(self, highest: int, n_layers: int) -> list[tuple[int, int, int, int]]:
        """Combinations of C, I, L and H to try, the wanted one first."""
        wanted = [(self.layers_per_merge, self.interval, self.lowest, highest)]
        smaller = [(c, 1, self.lowest, highest) for c in range(self.layers_per_merge, 1, -1)]
        last = [(2, 1, 0, n_layers)] if self.layers_per_merge > 1 else []
        return [*wanted, *smaller, *last]

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """Trials of half the model, about one for every other layer and each combination.

        The thresholds of a bisection mostly accept the same merges, whose trials are known.
        """
        tokens = math.prod(sample_shape(shape, self.n_samples, self.length))
        settings = self._settings(decoder.n_layers - 1, decoder.n_layers)
        trials = len(settings) * decoder.n_layers
        searched = trials * reading_flops(decoder, tokens) / 4
        return Effort(statistics_flops(decoder, math.prod(shape)), searched)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would be folded."""
        found = Size.without(decoder, layers_to_remove(decoder, sparsity))
        return replace(found, n_removed=None)  # layers are merged, not removed


@dataclass(frozen=True, kw_only=True)
class LaCoRelease(LaCo):
    """LaCo as its released notebooks compute it.

    A merged layer gets the last layer's projections and the first's norms: each difference is
    from the layer as updated so far, so the sum telescopes to the last layer's matrices. For C = 2
    both rules agree.

    Reference:
        The notebooks released with LaCo, arXiv:2402.11187.
    """

    name: ClassVar[str] = "laco-release"

    rule: Rule = "release"


def _notes(outcome: Outcome, trials: Collapse) -> dict[str, Any]:
    merges = zip(outcome.merges, outcome.similarities, strict=True)
    return {
        "layers_per_merge": outcome.layers_per_merge,
        "interval": outcome.interval,
        "threshold": outcome.threshold,
        "merges": [
            {"layer": merge.index, "n_folded": merge.n_folded, "similarity": similarity}
            for merge, similarity in merges
        ],
        "trials": trials.trials,
        "layer_runs": trials.layer_runs,
        "naive_layer_runs": trials.naive_layer_runs,
    }
