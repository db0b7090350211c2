"""LaCo: collapse runs of layers into one, as long as the model's output stays similar.

From the top down, a layer takes up the differences of the few layers behind it, which then go. A
trial stands if the final hidden states of some sentences stay similar enough to the dense model's.
How much goes is decided by the threshold, so the threshold is what is searched for a sparsity.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.engine.budget import layers_to_remove, mean_layer_parameters
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.method import Method, Pruned, Size
from streamline.methods.loss import loss_sample
from streamline.plan import Plan, Span, Step
from streamline.progress import part, tell

Rule = Literal["paper", "release"]
#: Halvings of the interval in which the threshold is searched.
_BISECTIONS = 20


@dataclass(frozen=True)
class Block:
    """One module of a model that is being collapsed, and the layers it stands for."""

    span: Span
    module: nn.Module


@dataclass(frozen=True)
class Merge:
    """Fold the ``n_folded`` blocks behind position ``place`` into the block there."""

    place: int
    n_folded: int


@torch.no_grad()
def merge_layers(decoder: Decoder, modules: Sequence[nn.Module], rule: Rule) -> nn.Module:
    """Fold layers into a copy of the first.

    Args:
        decoder: The model they come from; none of them is changed.
        modules: The layer that stays and those folded into it, in order.
        rule: ``"paper"``: ``W_0 + sum_k (W_k - W_0)``; ``"release"``: each difference is taken
            from the sum so far, which leaves the last layer's ``W_K``.

    Returns:
        A layer with merged projections (weights and biases) and the first layer's norms.
    """
    merged = copy.deepcopy(modules[0], {id(decoder.config): decoder.config})
    for path in decoder.family.projections:
        targets = dict(submodule(merged, path).named_parameters())
        others = [dict(submodule(module, path).named_parameters()) for module in modules[1:]]
        for name, target in targets.items():
            first = target.detach().float().clone()
            total = first.clone()
            for other in others:
                total += other[name].detach().float() - (first if rule == "paper" else total)
            target.copy_(total)
    return merged


class Collapse:
    """Trial merges on one model: what they leave of the dense model's output.

    The dense states are computed once. As merges go from the top down, everything below a trial is
    still dense, so a trial starts from the dense state at its own depth. One merged block is made
    per trial; no model is copied. Similarities are remembered, so that searching the threshold
    tries nothing twice.

    Args:
        decoder: The dense model.
        tokens: Token ids, [N, T].
        rule: How layers are merged.

    Attributes:
        trials: Merges tried so far.
        layer_runs: Layer evaluations so far, one per layer and sequence.
        naive_layer_runs: The same if each trial ran the whole trial model and the dense one.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, tokens: Tensor, rule: Rule) -> None:
        self.decoder, self.rule, self.n_sequences = decoder, rule, len(tokens)
        self.entry = decoder.enter(tokens)
        self.states = [hidden for _, hidden in decoder.trace(self.entry)]
        self.output = self._output(self.states[-1])
        self.trials = 0
        self.layer_runs = decoder.n_layers * len(tokens)
        self.naive_layer_runs = 0
        self._similarity: dict[tuple[tuple[Merge, ...], Merge], float] = {}
        dense = [Block(Span(i, i + 1), layer) for i, layer in enumerate(decoder.layers)]
        self._built: tuple[tuple[Merge, ...], list[Block]] = ((), dense)
        self._dense = dense

    def blocks(self, merges: tuple[Merge, ...]) -> list[Block]:
        """The blocks that are left after some merges."""
        known, blocks = self._built
        if merges[: len(known)] != known:
            known, blocks = (), self._dense
        for merge in merges[len(known) :]:
            blocks = self._apply(blocks, merge)
        self._built = (merges, blocks)
        return blocks

    def similarity(self, merges: tuple[Merge, ...], trial: Merge) -> float:
        """Mean cosine of the flattened final states, dense against one more merge.

        Args:
            merges: Merges that stand.
            trial: A merge below all of them.
        """
        key = (merges, trial)
        if key not in self._similarity:
            self._similarity[key] = self._try(self._apply(self.blocks(merges), trial), trial.place)
        return self._similarity[key]

    def _apply(self, blocks: list[Block], merge: Merge) -> list[Block]:
        stop = merge.place + merge.n_folded + 1
        part = blocks[merge.place : stop]
        module = merge_layers(self.decoder, [block.module for block in part], self.rule)
        block = Block(Span(part[0].span.start, part[-1].span.stop), module)
        return [*blocks[: merge.place], block, *blocks[stop:]]

    @torch.no_grad()
    def _try(self, blocks: list[Block], place: int) -> float:
        hidden = self.states[blocks[place].span.start]
        for block in blocks[place:]:
            hidden = self.decoder.run(block.module, hidden, self.entry, block.span.start)
        self.trials += 1
        self.layer_runs += self.n_sequences * (len(blocks) - place)
        self.naive_layer_runs += self.n_sequences * (len(blocks) + self.decoder.n_layers)
        output = self._output(hidden).to(self.output.device)
        return float(torch.cosine_similarity(output, self.output, dim=-1).mean())

    def _output(self, hidden: Tensor) -> Tensor:
        """Final states after the final norm, one vector per sequence, [N, T * D], float32."""
        norm = submodule(self.decoder.model, self.decoder.family.norm)
        states: Tensor = norm(hidden)
        return states.float().flatten(1)


@dataclass(frozen=True)
class Outcome:
    """What one setting of C, I and T leads to."""

    layers_per_merge: int
    interval: int
    threshold: float
    merges: tuple[Merge, ...] = ()
    similarities: tuple[float, ...] = field(default=())

    @property
    def n_removed(self) -> int:
        """Layers fewer than before."""
        return sum(merge.n_folded for merge in self.merges)


def collapse(
    trials: Collapse,
    n_remove: int,
    *,
    layers_per_merge: int,
    interval: int,
    threshold: float,
    lowest: int,
    highest: int,
) -> Outcome:
    """Merge from the top down wherever similarity stays above the threshold.

    Args:
        trials: The model.
        n_remove: Stop when this many layers are gone; the last merge folds fewer layers if need be.
        layers_per_merge: C: a merge makes one layer of up to C.
        interval: I: how far down to go on after a merge that stands.
        threshold: T: similarity that a merge must exceed.
        lowest: L: lowest layer to merge into.
        highest: H: layers from here on are not in the first merge.

    Returns:
        The merges that stand.
    """
    merges: tuple[Merge, ...] = ()
    found: tuple[float, ...] = ()
    left, n_blocks, place = n_remove, trials.decoder.n_layers, highest - layers_per_merge
    while place >= lowest and left > 0:
        n_folded = min(layers_per_merge - 1, n_blocks - place - 1, left)
        trial = Merge(place, n_folded)
        similarity = trials.similarity(merges, trial) if n_folded else threshold
        if similarity > threshold:
            merges, found = (*merges, trial), (*found, similarity)
            left, n_blocks = left - n_folded, n_blocks - n_folded
            place -= interval
        else:
            place -= 1
    return Outcome(layers_per_merge, interval, threshold, merges, found)


@dataclass(frozen=True, kw_only=True)
class LaCo(Method):
    """Merge neighbouring layers into one, to a threshold.

    For the wanted C and I, and for every smaller C with I = 1, the highest threshold is searched at
    which enough layers go. Of these models the one most similar to the dense model is taken (or,
    by ``choose``, the first that reaches the count); its C, I and T stand in the notes.

    Attributes:
        layers_per_merge: C, layers that become one.
        interval: I, layers to go down after a merge that stands.
        lowest: L, lowest layer to merge into.
        highest: H, end of the first merge; None for the last layer, which is then not merged.
        n_samples: Calibration sequences.
        length: Tokens of each.
        rule: ``"paper"`` or ``"release"``; see :func:`merge_layers`.
        choose: ``"similar"`` tries all settings and takes the most similar model; ``"wanted"``
            takes the wanted C and I, and smaller ones only if those cannot reach the count.

    Reference:
        LaCo, arXiv:2402.11187, algorithm 1; C, I and L as reported for 7B models.

    Differs from the paper:
        The threshold is the unknown, found for the asked sparsity, and merging stops as soon as the
        sparsity is met. Short sequences of the run's calibration texts stand for the paper's few
        Wikipedia sentences. Biases of projections are merged like weights, which the models of the
        paper do not have.
    """

    name: ClassVar[str] = "laco"
    paper: ClassVar[str] = "arXiv:2402.11187"

    layers_per_merge: int = 4
    interval: int = 2
    lowest: int = 1
    highest: int | None = None
    n_samples: int = 5
    length: int = 20
    rule: Rule = "paper"
    choose: Literal["similar", "wanted"] = "similar"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.layers_per_merge < 1 or self.interval < 1 or self.lowest < 0:
            raise ConfigError(
                f"{self.name} needs layers_per_merge and interval of at least 1 and lowest of at "
                f"least 0, got {self.layers_per_merge}, {self.interval} and {self.lowest}"
            )

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Search the threshold and hand over the merged blocks.

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
        """The setting of C, I and T by which ``n_remove`` layers go.

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
                outcome = _highest_threshold(trials, n_remove, bounds)
            if outcome is not None:
                found.append(outcome)
        if found:
            return max(found, key=lambda outcome: outcome.similarities[-1])
        raise UnsupportedModelError(
            f"{self.name} with layers_per_merge={self.layers_per_merge} cannot take {n_remove} of "
            f"{n_layers} layers out of {trials.decoder.name}: ask for a lower sparsity, or raise "
            "layers_per_merge to at least 2"
        )

    def _settings(self, highest: int, n_layers: int) -> list[tuple[int, int, int, int]]:
        """Settings of C, I, L and H to try, the wanted one first."""
        wanted = [(self.layers_per_merge, self.interval, self.lowest, highest)]
        smaller = [(c, 1, self.lowest, highest) for c in range(self.layers_per_merge, 1, -1)]
        last = [(2, 1, 0, n_layers)] if self.layers_per_merge > 1 else []
        return [*wanted, *smaller, *last]

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would be folded away."""
        n_remove = layers_to_remove(decoder, sparsity)
        dense = decoder.n_parameters()
        return Size(dense, dense - round(n_remove * mean_layer_parameters(decoder)))


@dataclass(frozen=True, kw_only=True)
class LaCoRelease(LaCo):
    """LaCo as its released notebooks compute it.

    A merged layer gets the last layer's projections and the first's norms: each difference is taken
    from the layer as updated so far, so the sum telescopes to the last layer's matrices. For C = 2
    both rules agree.

    Reference:
        The notebooks released with LaCo, arXiv:2402.11187.
    """

    name: ClassVar[str] = "laco-release"

    rule: Rule = "release"


def _highest_threshold(trials: Collapse, n_remove: int, bounds: dict[str, int]) -> Outcome | None:
    """Bisect the threshold; None if not even accepting every merge removes enough layers."""
    best = collapse(trials, n_remove, threshold=-1.0, **bounds)
    if best.n_removed < n_remove:
        return None
    low, high = -1.0, 1.0
    for n in range(_BISECTIONS):
        tell(n, _BISECTIONS)
        middle = (low + high) / 2
        outcome = collapse(trials, n_remove, threshold=middle, **bounds)
        if outcome.n_removed == n_remove:
            low, best = middle, outcome
        else:
            high = middle
    return best


def _notes(outcome: Outcome, trials: Collapse) -> dict[str, Any]:
    merges = zip(outcome.merges, outcome.similarities, strict=True)
    return {
        "layers_per_merge": outcome.layers_per_merge,
        "interval": outcome.interval,
        "threshold": outcome.threshold,
        "merges": [
            {"layer": merge.place, "n_folded": merge.n_folded, "similarity": similarity}
            for merge, similarity in merges
        ],
        "trials": trials.trials,
        "layer_runs": trials.layer_runs,
        "naive_layer_runs": trials.naive_layer_runs,
    }
