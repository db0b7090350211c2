"""What a layer is called with: tensors within tuples, lists and dicts, changed together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamline.engine.transfer import onto


def repeated(value: Any, n: int, rows: int) -> Any:
    """Every tensor of one call for a batch of ``rows``, made for ``n`` such batches.

    Tensors whose first dimension is 1 serve any batch; one-dimensional ones have no batch.
    """
    if isinstance(value, Tensor):
        batched = value.dim() > 1 and len(value) > 1 and len(value) % rows == 0
        return value.repeat(n, *[1] * (value.dim() - 1)) if batched else value
    if isinstance(value, (tuple, list)):
        return type(value)(repeated(item, n, rows) for item in value)
    if isinstance(value, dict):
        return {key: repeated(item, n, rows) for key, item in value.items()}
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return onto(value, device)
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value
