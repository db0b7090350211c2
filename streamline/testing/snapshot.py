"""The state of a model that a measurement must not change, to compare before and after.

Example::

    before = snapshot(model)
    method.calibrate(decoder, batches)
    differences(before, snapshot(model))        # []
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["differences", "snapshot"]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Weights, gradients, hooks, modes and forwards of a model, and the global random states.

    Args:
        model: Any module; nothing about it changes.

    Returns:
        Facts by a name that is used in messages. Tensors are copies.
    """
    facts: dict[str, Any] = {
        "torch's random state": torch.get_rng_state().clone(),
        "numpy's random state": repr(np.random.get_state()),
        "python's random state": random.getstate(),
    }
    for name, tensor in model.state_dict().items():
        facts[f"the weight {name}"] = tensor.detach().clone()
    for name, parameter in model.named_parameters():
        facts[f"the gradient of {name}"] = (parameter.requires_grad, parameter.grad is None)
    for name, module in model.named_modules():
        label = name or "the model itself"
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        facts[f"the hooks of {label}"] = [list(table) for table in hooks]
        facts[f"the training mode of {label}"] = module.training
        facts[f"the forward of {label}"] = module.__dict__.get("forward")
    return facts


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the facts that are not the same in two snapshots.

    Args:
        before: A snapshot.
        after: A later one of the same model.

    Returns:
        The names in order: first those of ``before``, then what is new in ``after``.
    """
    changed = [name for name, old in before.items() if not _same(old, after.get(name))]
    return changed + [name for name in after if name not in before]


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and old.shape == new.shape and torch.equal(old, new)
    return bool(old == new)
