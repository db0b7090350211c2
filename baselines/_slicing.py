"""Rotate and slice the residual stream of a model, layer by layer on already sliced states.

The norms' scales are fused into the projections after them (and for LayerNorm the subtraction of
the mean into those before them), so that the rest of a norm commutes with any rotation. Then each
sublayer that writes to the residual gets a basis of its own, and only its first ``d`` directions
are kept.

Example:
    model = slice_model(decoder, 448, batches, principal)
    sliced_parameters(decoder, 448)["total"] == sum(p.numel() for p in model.parameters())

Notation: B batch, T tokens, D hidden size, d sliced width, N sequences. Vectors are rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamline.engine.assemble import assemble, shared_copy
from streamline.engine.decoder import Decoder, Entry, submodule
from streamline.engine.paths import Node, Path
from streamline.methods.linear_algebra import eigenvectors, random_rotation, second_moment
from streamline.modeling.modeling_narrow import SlicedLayer, build_shell
from streamline.progress import tell

from ._fusing import (
    affine,
    centre,
    fill_bias,
    fill_rows,
    put,
    rotated,
    wide,
    written,
)
from ._groups import rows
from ._sliced_shapes import layer_spec, shell_spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: From the second moment of states, [D, D] float64, to an orthogonal matrix, [D, D] float64,
#: whose first columns are kept.
Basis = Callable[[Tensor], Tensor]


def principal(moment: Tensor) -> Tensor:
    """Principal directions by falling variance, as columns.

    One hundredth of the mean variance is added to each direction first, as in the released code.
    """
    damping = 0.01 * moment.diagonal().mean()
    damped = moment + damping * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return eigenvectors(damped)


def turned(basis: Basis, width: int, generator: torch.Generator) -> Basis:
    """A basis whose kept directions are turned among themselves by a random rotation.

    Args:
        basis: Where the directions come from.
        width: How many are kept.
        generator: Source of the rotations, a new one at each call.
    """

    def with_rotation(moment: Tensor) -> Tensor:
        q = basis(moment).clone()
        q[:, :width] = q[:, :width] @ random_rotation(width, generator, q.device)
        return q

    return with_rotation


@torch.no_grad()
def slice_model(
    decoder: Decoder, width: int, batches: Tensor, basis: Basis, *, batch_tokens: int = 4096
) -> PreTrainedModel:
    """A model whose residual stream has less width, fitted on calibration tokens.

    Args:
        decoder: The dense model; it is not changed.
        width: Directions kept, d, at most D.
        batches: Calibration tokens, [N, T].
        basis: How the directions are found, such as :func:`principal`.
        batch_tokens: Tokens run at once (at least one sequence).

    Returns:
        A model of the same class; of the dense model's tensors it shares those that do not touch
        the residual stream. Its head is not tied.
    """
    centred = decoder.family.norm_kind == "layer"
    size = max(1, batch_tokens // batches.shape[1])
    entries = [decoder.enter(tokens) for tokens in torch.split(batches, size)]
    full = [centre(entry.hidden) if centred else entry.hidden for entry in entries]
    states = _SlicingPass(decoder, width, basis, entries, full)
    first = states.narrow(width)
    nodes = []
    for index in range(decoder.n_layers):
        tell(index, decoder.n_layers)
        nodes.append(Node(states.layer(index), index))
    model = assemble(Path(decoder, tuple(nodes), "sliced"))
    shell = shell_spec(decoder, width)
    build_shell(model, shell)
    for path in shell["embeddings"]:
        before, after = submodule(decoder.model, path), submodule(model, path)
        fill_rows(after, before, lambda part: (centre(part) if centred else part) @ first)
    norm = submodule(decoder.model, decoder.family.norm)
    dense_head, head = (submodule(m, decoder.family.head) for m in (decoder.model, model))
    scale, shift = affine(norm)
    fill_rows(head, dense_head, lambda part: (part * scale) @ states.q)
    if head.bias is not None:
        fill_bias(head, dense_head, shift)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    model.eval()
    return model


@dataclass
class _SlicingPass:
    """The calibration states as they pass through the layers.

    Attributes:
        decoder: The dense model.
        width: Directions kept, d.
        basis: How they are found.
        entries: The batches, with each layer's call.
        states: Hidden states of each batch: [B, T, D] before :meth:`narrow`, [B, T, d] after.
        q: The last basis, [D, D].
        kept: The columns of it that were kept.
    """

    decoder: Decoder
    width: int
    basis: Basis
    entries: list[Entry]
    states: list[Tensor]
    q: Tensor = torch.empty(0)
    kept: Tensor = torch.empty(0)

    def narrow(self, width: int) -> Tensor:
        """Find the basis of the states and keep its first directions.

        Returns:
            The kept directions, [D, width], float64.
        """
        moment = sum(second_moment(wide(state).flatten(0, -2)) for state in self.states)
        assert isinstance(moment, Tensor)
        self.q = self.basis(moment)
        self.kept = self.q[:, :width]
        self.states = [state @ self.kept.to(state) for state in self.states]
        return self.kept

    def widen(self, sublayer: Callable[[Tensor, int], Tensor]) -> None:
        """Add the output of a sublayer, in the model's own basis."""
        self.states = [
            state @ self.kept.T.to(state) + sublayer(state, i)
            for i, state in enumerate(self.states)
        ]

    def layer(self, index: int) -> SlicedLayer:
        """The sliced form of a layer; the states are then those after it."""
        decoder, family = self.decoder, self.decoder.family
        dense = decoder.layers[index]
        spec = layer_spec(decoder, index, self.width)
        layer = SlicedLayer(shared_copy(dense, {id(decoder.config): decoder.config}), spec)
        layer.eval().tuple_output = family.tuple_output
        heads = (family.qkv,) if family.fused else (family.q, family.k, family.v)

        def attention(state: Tensor, batch: int) -> Tensor:
            args, kwargs = self.entries[batch].calls[index]
            return layer.attend(state, *args, **kwargs)

        def both(state: Tensor, batch: int) -> Tensor:
            return attention(state, batch) + layer.feed_forward(state)

        out, mlp_out = (
            written(submodule(dense, p), family.norm_kind) for p in (family.o, family.mlp_out)
        )
        before = self.kept
        self._read(layer, dense, heads, family.attention_norm)
        put(layer, family.o, out)
        if layer.parallel:
            self._read(layer, dense, family.mlp_in, family.mlp_norm)
            put(layer, family.mlp_out, mlp_out)
            self.widen(both)
            after = self.narrow(spec["d"][1])
            put(layer, family.o, rotated(out, after))
            put(layer, family.mlp_out, rotated(mlp_out, after))
            layer.attn_shortcut.copy_(before.T @ after)
            return layer
        self.widen(attention)
        between = self.narrow(spec["d"][1])
        put(layer, family.o, rotated(out, between))
        layer.attn_shortcut.copy_(before.T @ between)
        self._read(layer, dense, family.mlp_in, family.mlp_norm)
        put(layer, family.mlp_out, mlp_out)
        self.widen(lambda state, batch: layer.feed_forward(state))
        after = self.narrow(spec["d"][2])
        put(layer, family.mlp_out, rotated(mlp_out, after))
        layer.mlp_shortcut.copy_(between.T @ after)
        return layer

    def _read(self, layer: nn.Module, dense: nn.Module, paths: tuple[str, ...], norm: str) -> None:
        """Let projections read the narrow states, with the scale of the norm before them."""
        scale, shift = affine(submodule(dense, norm))
        for path in paths:
            linear: Any = submodule(dense, path)
            weight = rows(linear, wide(linear.weight))
            bias = None if linear.bias is None else wide(linear.bias)
            if shift is not None:
                bias = weight @ shift if bias is None else bias + weight @ shift
            put(layer, path, ((weight * scale) @ self.kept, bias))
