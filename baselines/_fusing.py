"""Parts of a model in float64, as maps on row vectors: norms fused, means removed, rotated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamline.modeling.modeling_narrow import empty_linear

from ._groups import rows

#: A projection in float64: weight [outputs, inputs], bias [outputs] or None.
Map = tuple[Tensor, Tensor | None]

#: Rows of an embedding that are converted at once.
_ROWS = 8192


def wide(tensor: Tensor) -> Tensor:
    """Float64, on the CPU where the device has none."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device).double()


def centre(states: Tensor) -> Tensor:
    """Subtract each vector's mean."""
    return states - states.mean(-1, keepdim=True)


def affine(norm: nn.Module) -> tuple[Tensor | float, Tensor | None]:
    """Scale and shift of a norm; 1 and None where it has none."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return 1.0 if weight is None else wide(weight), None if bias is None else wide(bias)


def written(linear: Any, norm_kind: str) -> Map:
    """A projection into the residual; for LayerNorm models with outputs of mean zero."""
    weight = rows(linear, wide(linear.weight))
    bias = None if linear.bias is None else wide(linear.bias)
    if norm_kind == "layer":
        weight = weight - weight.mean(0, keepdim=True)
        bias = None if bias is None else bias - bias.mean()
    return weight, bias


def rotated(linear: Map, kept: Tensor) -> Map:
    """A projection whose outputs are written in the kept directions, [D, d]."""
    weight, bias = linear
    return kept.T @ weight, None if bias is None else bias @ kept


@torch.no_grad()
def put(layer: nn.Module, path: str, values: Map) -> None:
    """Set a projection, in the model's dtype, with whatever shape the values have."""
    weight, bias = values
    parent, _, leaf = path.rpartition(".")
    n_out, n_in = weight.shape
    linear: Any = empty_linear(layer.get_submodule(path), n_out, n_in, bias is not None)
    rows(linear, linear.weight).copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    setattr(layer.get_submodule(parent), leaf, linear)


@torch.no_grad()
def fill_rows(after: Any, before: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Fill a table from another, a few rows at a time."""
    for start in range(0, len(before.weight), _ROWS):
        part = slice(start, start + _ROWS)
        after.weight[part].copy_(change(wide(before.weight[part])))


@torch.no_grad()
def fill_bias(head: Any, dense_head: Any, shift: Tensor | None) -> None:
    """The head's own bias and what the final norm's shift adds to the logits."""
    head.bias.zero_() if dense_head.bias is None else head.bias.copy_(dense_head.bias)
    if shift is not None:
        weight = dense_head.weight
        for start in range(0, len(weight), _ROWS):
            part = slice(start, start + _ROWS)
            head.bias[part] += (wide(weight[part]) @ shift).to(head.bias)
