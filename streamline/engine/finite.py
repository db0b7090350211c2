"""Where a number that is not finite comes from: the first module of a path whose output is none.

What is measured is checked where it is small (log-likelihoods, losses, statistics); only if one is
NaN or infinite is the path run again, depth by depth, to say where.

Example::

    raise not_finite("piqa: the log-likelihood of option 1 of question 3", path, [tokens])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.forward import TokenJob, run
from streamline.engine.paths import Path
from streamline.errors import NotFiniteError

__all__ = ["bad_weight", "blame", "is_finite", "not_finite"]


def not_finite(what: str, path: Path, sequences: Iterable[Tensor]) -> NotFiniteError:
    """The error for a number that is not finite, with the layer where that begins.

    Args:
        what: The number, in words; ``{}`` in it becomes the index of the sequence.
        path: The model that gave it.
        sequences: Token ids that it may come from, [B, T] each; run in turn until one shows it.
    """
    jobs = [_Finite(tokens) for tokens in sequences]
    paths = [Path(path.decoder, path.nodes[:n], path.name) for n in range(len(path.nodes) + 1)]
    index, depth = 0, len(path.nodes) + 1
    for number, (_, good) in enumerate(run(paths, jobs)):
        if not all(good):
            index, depth = number, good.index(False)
            break
    return NotFiniteError(f"{what.format(index)} is not finite: {blame(path, depth)}")


def blame(path: Path, depth: int) -> str:
    """What is the first output that is not finite, and what to do.

    Args:
        path: The model.
        depth: 0 for what enters the first layer, i for what the i-th module of the path gives,
            one more than there are modules for the logits.
    """
    decoder = path.decoder
    module: nn.Module
    if depth > len(path.nodes):
        family = decoder.family
        module, where = submodule(decoder.model, family.head), f"the head ({family.head})"
    elif depth:
        node = path.nodes[depth - 1]
        module, where = node.module, f"layer {node.layer}"
        if all(module is not layer for layer in decoder.layers):
            where += f" (the {type(module).__name__} in its place)"
    else:
        module, where = decoder.model.get_input_embeddings(), "the embedding"
    text = f"the output of {where} is the first that is not"
    weight = bad_weight(module.named_parameters())
    if weight is not None and depth > len(path.nodes):
        weight = f"{decoder.family.head}.{weight}"
    if weight is not None:
        return f"{text}, and its {weight} holds NaN or infinity; get or make these weights again"
    if decoder.dtype == torch.float16:
        return f"{text}: float16 ends at 65,504; take bfloat16 (--dtype bfloat16)"
    return f"{text}, though its weights are finite: its computation overflows"


def bad_weight(weights: Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; those not in memory are passed."""
    items = weights.items() if isinstance(weights, Mapping) else weights
    return next((name for name, value in items if not is_finite(value)), None)


def is_finite(values: Tensor) -> bool:
    """Whether every element is a number; True for integers, nothing, and what has no memory."""
    if values.is_meta or not values.numel() or not values.is_floating_point():
        return True
    low, high = values.detach().aminmax()  # both are NaN where an element is
    return bool(torch.isfinite(low) & torch.isfinite(high))


class _Finite(TokenJob):
    """Some sequences, [B, T]: whether the states at each path's end are finite."""

    needs_head: ClassVar[bool] = False

    def keep(self, hidden: Tensor) -> Tensor:
        return torch.isfinite(hidden).all()

    def answer(self, decoder: Decoder, kept: Tensor) -> bool:
        return bool(kept)

    def split(self) -> Any:
        return self.halves()
