"""Refit the layers that are left, in closed form, so that their states follow the dense model's.

Layers before the first removed one hand on what they handed on. From there, each remaining layer
should give the state that the dense model has where the next remaining layer begins: a layer before
a gap learns to make up for it, those after it to correct what still differs. Both of a layer's
output projections are changed by ridge regression, the attention's towards the dense state between
the two, then the MLP's. No parameter is added, and the architecture stays what it was.

A token's squared error counts over the mean square of its target, since a few tokens have states
hundreds of times larger than the others. The penalty pulls towards the weights as they were; its
size is chosen, for each projection, on sequences that the regression has not seen, and where none
helps there the projection stays as it is.

Example::

    pruned = Pruned(Plan.drop(30, range(10, 19)))
    pruned = refitted(decoder, pruned, calibration_tokens)
    pruned.notes["refit"][0]        # {"layer": 9, "attention": [...], "mlp": [0.21, 0.08]}

Notation: B sequences, T tokens, N = B * T, I inputs of a projection, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from streamline.distributed.team import local
from streamline.engine.decoder import Decoder, Entry
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.methods.layers import odd_layer, projection
from streamline.methods.linear_algebra import solve
from streamline.plan import Plan, Step
from streamline.progress import part

__all__ = ["cannot_refit", "refitted", "rehearse_refit"]

#: Penalties as fractions of the mean square of a projection's inputs, tried until one does worse
#: than the one before.
RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3)
#: One sequence in so many is kept apart to choose the penalty.
HELD_OUT = 8
#: Tokens of a forward pass.
BATCH_TOKENS = 4096


def cannot_refit(decoder: Decoder) -> str | None:
    """Why a model's layers cannot be refitted, or None if they can.

    Args:
        decoder: The model; its weights may lie on the meta device.
    """
    if decoder.layer_order is not None:
        return "refitting changes layers in memory, and they are read one at a time; not --stream"
    if decoder.family.mixture:
        return f"refitting takes a layer's MLP as one, and {decoder.name} has experts"
    if decoder.family.extra_norms or not getattr(decoder.config, "do_layer_norm_before", True):
        return (
            f"refitting takes what a projection gives as what is added to the state, and "
            f"{decoder.name} normalises it"
        )
    odd = odd_layer(decoder)
    return None if odd is None else f"refitting changes projections of every layer, and {odd}"


def refitted(decoder: Decoder, pruned: Pruned, tokens: Tensor) -> Pruned:
    """A model without some layers, with those that follow the first gap refitted.

    Args:
        decoder: The dense model; it is not changed.
        pruned: What is left of it: dense layers alone.
        tokens: Calibration tokens, [B, T], int64.

    Returns:
        The same layers, those from the first gap on as copies, and in the notes for each the mean
        error of a token relative to its target's size on held-out sequences, before and after.

    Raises:
        ConfigError: If there is one sequence alone, so that none can be held out.
    """
    kept = pruned.plan.kept_layers
    follows = [*kept[1:], decoder.n_layers]
    gaps = [place for place, i in enumerate(kept) if follows[place] != i + 1]
    start = 0 if kept[:1] != [0] else min(gaps, default=len(kept))
    if start >= len(kept):
        return pruned
    if len(tokens) < 2:
        raise ConfigError(
            "refitting holds a sequence out to choose its penalty and got 1 in all; give "
            "--calibration-samples 2 or more"
        )
    notes: list[dict[str, Any]] = []
    made: dict[int, nn.Module] = {}
    with local(), torch.no_grad():
        states = _States(decoder, tokens, kept[start], alike=kept[0] == 0)
        for place in range(start, len(kept)):
            with part(place - start, len(kept) - start):
                index = kept[place]
                layer = _copied(decoder, index)
                between = states.advance(follows[place])
                attention = states.fit(layer, index, decoder.family.o, between)
                mlp = states.fit(layer, index, decoder.family.mlp_out, None)
                states.hand_on(layer, index)
            made[place] = layer
            notes.append({"layer": index, "attention": attention, "mlp": mlp})
    steps = tuple(
        Step(index, "layer-copy") if place in made else Step(index)
        for place, index in enumerate(kept)
    )
    plan = Plan(decoder.n_layers, steps, "refitted")
    return replace(pruned, plan=plan, modules=made, notes={**pruned.notes, "refit": notes})


def rehearse_refit(few: Decoder, tokens: Tensor) -> None:
    """Hold what refitting holds, on tensors without data: all copies, all states, one layer's sums.

    Args:
        few: As of :meth:`streamline.method.Method.rehearse`.
        tokens: Calibration tokens without values.
    """
    copies = [_copied(few, index) for index in range(few.n_layers)]
    refitted(few, Pruned(Plan.drop(few.n_layers, [0])), tokens)
    del copies


def _copied(decoder: Decoder, index: int) -> nn.Module:
    """A layer whose weights are its own."""
    return copy.deepcopy(decoder.layers[index], {id(decoder.config): decoder.config})


class _States:
    """Every batch as the dense and as the pruned model have it before a layer.

    Args:
        decoder: The dense model.
        tokens: Token ids, [B, T].
        depth: The first of the pruned model's layers that is refitted.
        alike: Whether both have the same states before it; else the pruned model begins with it.
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, depth: int, *, alike: bool) -> None:
        self.decoder = decoder
        rows = max(1, BATCH_TOKENS // tokens.shape[1])
        step = min(HELD_OUT, len(tokens))
        starts = range(0, len(tokens), rows)
        numbers = [range(i, min(i + rows, len(tokens))) for i in starts]
        self._parts = [
            [[i - own[0] for i in own if (i % step == step - 1) == held] for held in (False, True)]
            for own in numbers
        ]  # sequences of each batch that are fitted to, and those held out
        self._entries = [decoder.enter(ids) for ids in torch.split(tokens, rows)]
        self._dense = [entry.hidden for entry in self._entries]
        self._pruned = list(self._dense)
        self._depth = 0
        self._to(depth)
        if alike:
            self._pruned = list(self._dense)

    def advance(self, depth: int) -> list[Tensor]:
        """Run the dense model's next layers.

        Args:
            depth: Where it stands then.

        Returns:
            Its states between attention and MLP of the first of them, [B, T, D] of each batch.
        """
        family, found = self.decoder.family, []
        layer = self.decoder.layers[self._depth]
        for batch, entry in enumerate(self._entries):
            with _noting(layer, family.mlp_out) as seen:
                after = self.decoder.run(layer, self._dense[batch], entry, self._depth)
            found.append(after - seen[1].reshape(after.shape))
            self._dense[batch] = after
        self._depth += 1
        self._to(depth)
        return found

    def _to(self, depth: int) -> None:
        for index in range(self._depth, depth):
            self._run(self._dense, self.decoder.layers[index], index)
        self._depth = depth

    def hand_on(self, layer: nn.Module, index: int) -> None:
        """Run a layer of the pruned model."""
        self._run(self._pruned, layer, index)

    def _run(self, states: list[Tensor], layer: nn.Module, index: int) -> None:
        for batch, entry in enumerate(self._entries):
            states[batch] = self.decoder.run(layer, states[batch], entry, index)

    def fit(
        self, layer: nn.Module, index: int, path: str, between: Sequence[Tensor] | None
    ) -> list[float]:
        """Refit a projection of the pruned model's next layer, in place.

        Args:
            layer: The layer.
            index: Where it was in the dense model.
            path: The projection's path in it.
            between: What the states should be before the MLP, for the attention's projection; None
                for what they should be after the layer.

        Returns:
            The mean relative error on what is held out, before and after.
        """
        fitted, held = _Moments(), _Moments()
        for batch, entry in enumerate(self._entries):
            inputs, found = self._reading(layer, index, path, batch, entry, between is not None)
            wanted = self._dense[batch] if between is None else between[batch]
            error = wanted.double() - found.double()  # [B, T, D]
            sizes = wanted.double().square().mean(-1, keepdim=True)
            weights = 1.0 / sizes.clamp_min(torch.finfo(torch.float32).tiny)  # [B, T, 1]
            for moments, rows in zip((fitted, held), self._parts[batch], strict=True):
                if rows:
                    moments.add(inputs[rows].double(), error[rows], weights[rows])
        change = _change(fitted, held)
        after = held.left(change)
        if change is not None:
            module, parameters = projection(layer, path)
            weight = next(iter(parameters.values()))
            change = change.to(weight.device)
            weight.copy_(weight.double() + (change if isinstance(module, Conv1D) else change.T))
        return [round(error / held.scale, 6) for error in (held.left(None), after)]

    def _reading(
        self, layer: nn.Module, index: int, path: str, batch: int, entry: Entry, before_mlp: bool
    ) -> tuple[Tensor, Tensor]:
        """What a projection reads, [B, T, I], and the state after attention or layer, [B, T, D]."""
        hidden, out = self._pruned[batch], self.decoder.family.mlp_out
        with _noting(layer, path) as read, _noting(layer, out) as mlp:
            after = self.decoder.run(layer, hidden, entry, index)
        found = after - mlp[1].reshape(after.shape) if before_mlp else after
        return read[0].reshape(*hidden.shape[:2], -1), found


class _Moments:
    """Weighted sums over tokens, float64, that a change of a projection is solved from."""

    def __init__(self) -> None:
        self.gram = self.right = self.error = torch.zeros(())
        self.scale = 0

    def add(self, inputs: Tensor, error: Tensor, weights: Tensor) -> None:
        """Add tokens.

        Args:
            inputs: What the projection reads, [..., I].
            error: What is missing after it, [..., D].
            weights: What each token counts, [..., 1].
        """
        inputs, error = inputs.flatten(0, -2), error.flatten(0, -2)
        weights = weights.flatten(0, -2)
        counted = weights * inputs
        self.gram = self.gram.to(inputs) + counted.T @ inputs  # [I, I]
        self.right = self.right.to(inputs) + counted.T @ error  # [I, D]
        self.error = self.error.to(error) + (weights * error.square()).sum()
        self.scale += error.numel()

    def joined(self, other: _Moments) -> _Moments:
        """The sums over the tokens of both."""
        both = _Moments()
        both.gram, both.right = self.gram + other.gram, self.right + other.right
        both.error, both.scale = self.error + other.error, self.scale + other.scale
        return both

    def change(self, ridge: float) -> Tensor:
        """What is to be added to the projection, [I, D], at a penalty."""
        penalty = ridge * self.gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        return solve(self.gram + penalty * torch.eye(len(self.gram)).to(self.gram), self.right)

    def left(self, change: Tensor | None) -> float:
        """The summed error that is left after a change; None for no change."""
        if change is None:
            return float(self.error)
        explained = 2 * (change * self.right).sum() - (change * (self.gram @ change)).sum()
        return max(0.0, float(self.error - explained))


def _change(fitted: _Moments, held: _Moments) -> Tensor | None:
    """The change that is best on what was held out, made of all tokens; None if none helps."""
    best, least = None, held.left(None)
    for ridge in RIDGES:
        error = held.left(fitted.change(ridge))
        if error >= least:
            break
        best, least = ridge, error
    return None if best is None else fitted.joined(held).change(best)


@contextmanager
def _noting(layer: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """What a projection of a layer reads and gives at its next call."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[:] = [args[0], output]

    hook = layer.get_submodule(path).register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
