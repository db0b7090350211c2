"""Merging runs of layers into one, and how similar the output stays: the trials of LaCo.

Example:
    trials = Collapse(decoder, tokens, "paper")
    collapse(trials, n_remove, layers_per_merge=4, interval=2, threshold=0.7, lowest=1, highest=31)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, submodule
from streamline.plan import Span
from streamline.progress import tell

Rule = Literal["paper", "release"]
#: Halvings of the interval in which the threshold is searched.
_BISECTIONS = 20


@dataclass(frozen=True)
class Block:
    """One module of a model that is being collapsed, and the layers it replaces."""

    span: Span
    module: nn.Module


@dataclass(frozen=True)
class Merge:
    """Fold the ``n_folded`` blocks after position ``index`` into the block there."""

    index: int
    n_folded: int


@torch.no_grad()
def merge_layers(decoder: Decoder, modules: Sequence[nn.Module], rule: Rule) -> nn.Module:
    """Fold layers into a copy of the first.

    Args:
        decoder: The model they come from; none of them is changed.
        modules: The layer that stays and those folded into it, in order.
        rule: ``"paper"``: ``W_0 + sum_k (W_k - W_0)``; ``"release"``: each difference is
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

    The dense states are computed once. Merging is from the top down, so everything below a trial is
    still dense, so a trial starts from the dense state at its own depth. One merged block is made
    per trial; no model is copied. Similarities are remembered, so searching the threshold
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
        """The blocks after some merges."""
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
            merges: Merges that were accepted.
            trial: A merge below all of them.
        """
        key = (merges, trial)
        if key not in self._similarity:
            self._similarity[key] = self._try(self._apply(self.blocks(merges), trial), trial.index)
        return self._similarity[key]

    def _apply(self, blocks: list[Block], merge: Merge) -> list[Block]:
        stop = merge.index + merge.n_folded + 1
        part = blocks[merge.index : stop]
        module = merge_layers(self.decoder, [block.module for block in part], self.rule)
        block = Block(Span(part[0].span.start, part[-1].span.stop), module)
        return [*blocks[: merge.index], block, *blocks[stop:]]

    @torch.no_grad()
    def _try(self, blocks: list[Block], index: int) -> float:
        hidden = self.states[blocks[index].span.start]
        for block in blocks[index:]:
            hidden = self.decoder.run(block.module, hidden, self.entry, block.span.start)
        self.trials += 1
        self.layer_runs += self.n_sequences * (len(blocks) - index)
        self.naive_layer_runs += self.n_sequences * (len(blocks) + self.decoder.n_layers)
        output = self._output(hidden).to(self.output.device)
        return float(torch.cosine_similarity(output, self.output, dim=-1).mean())

    def _output(self, hidden: Tensor) -> Tensor:
        """Final states after the final norm, one vector per sequence, [N, T * D], float32."""
        norm = submodule(self.decoder.model, self.decoder.family.norm)
        states: Tensor = norm(hidden)
        return states.float().flatten(1)  # [N, T * D]


@dataclass(frozen=True)
class Outcome:
    """The merges of one combination of C, I and T."""

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
        n_remove: Stop when this many layers are removed; the last merge folds fewer layers if need
            be.
        layers_per_merge: C: a merge makes one layer of up to C.
        interval: I: how many layers to step down after an accepted merge.
        threshold: T: similarity that a merge must exceed.
        lowest: L: lowest layer to merge into.
        highest: H: layers from here on are not in the first merge.

    Returns:
        The accepted merges.
    """
    merges: tuple[Merge, ...] = ()
    found: tuple[float, ...] = ()
    remaining, n_blocks = n_remove, trials.decoder.n_layers
    index = highest - layers_per_merge
    while index >= lowest and remaining > 0:
        n_folded = min(layers_per_merge - 1, n_blocks - index - 1, remaining)
        trial = Merge(index, n_folded)
        similarity = trials.similarity(merges, trial) if n_folded else threshold
        if similarity > threshold:
            merges, found = (*merges, trial), (*found, similarity)
            remaining, n_blocks = remaining - n_folded, n_blocks - n_folded
            index -= interval
        else:
            index -= 1
    return Outcome(layers_per_merge, interval, threshold, merges, found)


def highest_threshold(trials: Collapse, n_remove: int, bounds: dict[str, int]) -> Outcome | None:
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
