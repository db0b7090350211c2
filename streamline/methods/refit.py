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

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from streamline.distributed.team import local
from streamline.engine.budget import Effort, reading_flops
from streamline.engine.decoder import Decoder, Entry
from streamline.errors import ConfigError, NotFiniteError, UnsupportedModelError
from streamline.method import Pruned
from streamline.methods.layers import layer_copy, odd_layer, projection
from streamline.methods.ridge import RIDGES, RidgeMoments, best_change
from streamline.plan import Plan, Step
from streamline.progress import part

__all__ = ["cannot_refit", "refit_effort", "refitted", "rehearse_refit"]

#: One sequence in so many is kept apart to choose the penalty.
HELD_OUT = 8
#: Tokens of a forward pass.
BATCH_TOKENS = 4096


def cannot_refit(decoder: Decoder) -> str | None:
    """Why a model's layers cannot be refitted, or None if they can.

    Args:
        decoder: The model; its weights may lie on the meta device.
    """
    if decoder.family.mixture:
        return f"refitting takes a layer's MLP as one, and {decoder.name} has experts"
    config = decoder.config
    after = getattr(config, "apply_residual_connection_post_layernorm", False)
    if decoder.family.extra_norms or after or not getattr(config, "do_layer_norm_before", True):
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
        NotFiniteError: If a state is not finite.
        UnsupportedModelError: If weights of what would be refitted are offloaded.
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
    held: list[Any] = [_copied(few, index) for index in range(few.n_layers)]
    with torch.no_grad():
        states = _States(few, tokens, 0, alike=True)
        held.append(states.advance(1))
        for path in (few.family.o, few.family.mlp_out):
            fitted, other = states.sums(held[0], 0, path, None)
            fitted.joined(other).change(RIDGES[0])


def refit_effort(decoder: Decoder, n_removed: int, first: float, shape: tuple[int, int]) -> Effort:
    """What refitting takes beside the decision which layers go.

    Args:
        decoder: The model; its weights may lie on the meta device.
        n_removed: Layers that are gone.
        first: About where the first gap begins.
        shape: Calibration sequences, and tokens of each.
    """
    if n_removed == 0:
        return Effort()
    n, d, tokens = decoder.n_layers, decoder.hidden_size, math.prod(shape)
    n_kept = max(0.0, n - first - n_removed + 1)
    # The dense model is read once; of the other each layer for both its projections and at the end.
    found = reading_flops(decoder, tokens) * (1 + 3 * n_kept / n)
    algebra, tries = 0.0, 3  # penalties, of which the last is worse
    for path in (decoder.family.o, decoder.family.mlp_out):
        _, parameters = projection(decoder.layers[0], path)
        width = next(iter(parameters.values())).numel() // d
        found += n_kept * 2.0 * width * (width + d) * tokens
        found += n_kept * 2.0 * width**2 * d * tries
        algebra += n_kept * (tries + 1) * (2 / 3 * width**3 + 2.0 * width**2 * d)
    return Effort(prune=found, algebra=algebra)


def _copied(decoder: Decoder, index: int) -> nn.Module:
    """A layer whose weights are its own; they may be tensors without data."""
    layer = decoder.layers[index]
    if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
        raise UnsupportedModelError(
            f"layer {index} of {decoder.name} cannot be refitted: its weights are offloaded; "
            "use more devices, or leave out refit"
        )
    return layer_copy(decoder, layer)


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
        fitted, held = self.sums(layer, index, path, between)
        if not math.isfinite(fitted.left(None) + held.left(None)):
            raise NotFiniteError(
                f"refitting: states at layer {index} of {self.decoder.name} are not finite in "
                f"{str(self.decoder.dtype).removeprefix('torch.')}; take --dtype float32"
            )
        change = best_change(fitted, held)
        after = held.left(change)
        if change is not None:
            module, parameters = projection(layer, path)
            weight = next(iter(parameters.values()))
            change = change.to(weight.device)
            weight.copy_(weight.double() + (change if isinstance(module, Conv1D) else change.T))
        return [round(error / held.scale, 6) for error in (held.left(None), after)]

    def sums(
        self, layer: nn.Module, index: int, path: str, between: Sequence[Tensor] | None
    ) -> tuple[RidgeMoments, RidgeMoments]:
        """What :meth:`fit` solves from, of what is fitted to and of what is held out."""
        fitted, held = RidgeMoments(), RidgeMoments()
        for batch, entry in enumerate(self._entries):
            inputs, found = self._reading(layer, index, path, batch, entry, between is not None)
            wanted = (self._dense if between is None else between)[batch].to(found.device)
            error = wanted.double() - found.double()  # [B, T, D]
            sizes = wanted.double().square().mean(-1, keepdim=True)
            weights = 1.0 / sizes.clamp_min(torch.finfo(torch.float32).tiny)  # [B, T, 1]
            for moments, rows in zip((fitted, held), self._parts[batch], strict=True):
                if rows:
                    moments.add(inputs[rows].double(), error[rows], weights[rows])
        return fitted, held

    def _reading(
        self, layer: nn.Module, index: int, path: str, batch: int, entry: Entry, before_mlp: bool
    ) -> tuple[Tensor, Tensor]:
        """What a projection reads, [B, T, I], and the state after attention or layer, [B, T, D]."""
        hidden, out = self._pruned[batch], self.decoder.family.mlp_out
        with _noting(layer, path) as read, _noting(layer, out) as mlp:
            after = self.decoder.run(layer, hidden, entry, index)
        found = after - mlp[1].reshape(after.shape) if before_mlp else after
        return read[0].reshape(*hidden.shape[:2], -1), found


@contextmanager
def _noting(layer: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """What a projection of a layer reads and gives at its next call."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[:] = [args[0], output.clone()]  # a layer may add to it in place

    hook = layer.get_submodule(path).register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
