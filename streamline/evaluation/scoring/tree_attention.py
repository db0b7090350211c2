"""Attention over a long row of prefix trees, block by block.

A row holds many small trees one after the other (see :mod:`streamline.evaluation.scoring.packing`),
and its [N, N] mask is almost empty. Inside :func:`block_attention` a model's attention runs once
for each block of about a hundred tokens, against that block's own keys and those of the ancestors
that all of its tokens share: a question's options after a long passage, questions after few-shot
examples. The result is that of one masked attention over the whole row; each block is computed by
the function the model itself would have used.

It reaches every module that asks transformers' table of attention functions. A module that does not
is still given the whole mask and stays right.

Example::

    layout = split(row.ends, limit=96)
    with block_attention(modules, blocks_of(layout, row.ends, dtype, device)):
        trie.forward(entry, at_end)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = [
    "Block",
    "block_attention",
    "blocks_of",
    "own_attention",
    "replaced_attention",
    "split",
    "tree_mask",
]

_NAME = "streamline_tree"
Span = tuple[int, int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Block:
    """Neighbouring queries and the keys they look at.

    Attributes:
        start: First query, and first of the block's own keys.
        stop: End of both.
        outside: Ranges of keys before the block that all of its queries look at.
        mask: Additive mask [1, 1, stop - start, keys], outside keys first; None if causal.
    """

    start: int
    stop: int
    outside: tuple[tuple[int, int], ...]
    mask: Tensor | None


@dataclass(frozen=True)
class _State:
    """What the attention function needs to know of the pass it is called in."""

    blocks: Sequence[Block]
    original: dict[int, str]


_state: ContextVar[_State | None] = ContextVar("streamline_tree_attention", default=None)


def split(ends: NDArray[np.int64], limit: int) -> list[Span]:
    """Cut a row into blocks of neighbouring subtrees.

    Args:
        ends: End of each token's subtree, [N], tokens depth first.
        limit: Blocks grow to about this many tokens; an unbranched stretch is never cut.

    Returns:
        ``(start, stop, outside)`` with the ranges of ancestors before the block, in order.
    """
    out: list[Span] = []
    todo: list[Span] = [(0, len(ends), ())]
    while todo:
        start, stop, outside = todo.pop()
        if stop - start <= limit:
            out.append((start, stop, outside))
            continue
        first = root = start
        while root < stop:
            end = int(ends[root])
            if end - root <= limit:
                if end - first > limit:
                    out.append((first, root, outside))
                    first = root
                root = end
                continue
            if root > first:
                out.append((first, root, outside))
            # The stretch before the first branching has one end; a bare leaf ends with itself.
            other = np.flatnonzero(ends[root:end] != end)
            branch = root + int(other[0]) if len(other) else end
            out.append((root, branch, outside))
            if branch < end:
                todo.append((branch, end, (*outside, (root, branch))))
            first = root = end
        if root > first:
            out.append((first, root, outside))
    return out


def tree_mask(ends: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole additive mask of some rows.

    Args:
        ends: End of each token's subtree, [B, T], int64.
        dtype: The model's dtype.

    Returns:
        [B, 1, T, T]: 0 where token i may look at token j, else the lowest number of the dtype.
    """
    place = torch.arange(ends.shape[1], device=ends.device)
    seen = (place[:, None] >= place) & (place[:, None] < ends[:, None, :])
    mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=ends.device)
    return mask.masked_fill_(seen, 0.0)[:, None]


def blocks_of(spans: Iterable[Span], ends: NDArray[np.int64], like: Tensor) -> list[Block]:
    """Give each block its mask.

    Args:
        spans: From :func:`split`.
        ends: The row they were cut from, [N].
        like: A tensor with the dtype and device of the masks.
    """
    blocks = []
    for start, stop, outside in spans:
        own = ends[start:stop] - start
        before = sum(b - a for a, b in outside)
        if before == 0 and bool((own >= stop - start).all()):
            blocks.append(Block(start, stop, outside, None))
            continue
        local = tree_mask(torch.from_numpy(own)[None], like.dtype)
        shape = (1, 1, stop - start, before)
        mask = torch.cat([torch.zeros(shape, dtype=like.dtype), local], dim=-1)
        blocks.append(Block(start, stop, outside, mask.to(like.device)))
    return blocks


@contextmanager
def block_attention(modules: Iterable[nn.Module], blocks: Sequence[Block]) -> Iterator[None]:
    """Let the attention of some modules run block by block; undone on leaving.

    Args:
        modules: Layers that will be run on one row ([1, N, D]).
        blocks: From :func:`blocks_of`, covering the row.
    """
    with replaced_attention(modules, _NAME, _forward) as original:
        token = _state.set(_State(blocks, original))
        try:
            yield
        finally:
            _state.reset(token)


@contextmanager
def replaced_attention(
    modules: Iterable[nn.Module], name: str, function: Callable[..., Any]
) -> Iterator[dict[int, str]]:
    """Let the attention of some modules be computed by another function; undone on leaving.

    Args:
        modules: Whose attention, that of their parts included.
        name: Under which transformers' table of attention functions is to know the function.
        function: Called as the functions of that table are.

    Yields:
        The name of the function each config had before, by the config's ``id``.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    configs: dict[int, Any] = {}
    for part in (part for module in modules for part in module.modules()):
        config = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None):
            configs[id(config)] = config
    original = {key: str(config._attn_implementation) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield original
    finally:
        for key, config in configs.items():
            config._attn_implementation = original[key]


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, H, N, d], key and value [1, G, N, d] -> [1, N, H, d]."""
    state = _state.get()
    assert state is not None
    attend = own_attention(module, state.original[id(module.config)], kwargs)
    shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    out = query.new_empty(shape)
    for block in state.blocks:
        ranges = (*block.outside, (block.start, block.stop))
        out[:, block.start : block.stop] = attend(
            query[:, :, block.start : block.stop],
            _keys(key, ranges),
            _keys(value, ranges),
            block.mask,
        )
    return out, None


def _keys(states: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """Some ranges of keys or values, joined."""
    parts = [states[:, :, a:b] for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def own_attention(module: nn.Module, name: str, kwargs: dict[str, Any]) -> Callable[..., Tensor]:
    """A model's own attention as a function of states and mask alone.

    Args:
        module: The attention module that is being run.
        name: The model's own attention function in transformers' table.
        kwargs: What the module gave besides states and mask.

    Returns:
        ``(query [B, H, n, d], key [B, G, N, d], value, mask) -> [B, n, H, d]``; without a mask
        attention is causal.
    """
    if name == "sdpa" and all(kwargs.get(k) is None for k in ("softcap", "position_bias", "cache")):
        scale = kwargs.get("scaling")

        def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            grouped = key.shape[1] != query.shape[1]
            if grouped and query.is_cuda and mask is not None:
                # The fast kernels there support no mask together with grouped heads.
                times = query.shape[1] // key.shape[1]
                key, value = (t.repeat_interleave(times, dim=1) for t in (key, value))
                grouped = False
            result = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and query.shape[2] > 1,
                scale=scale,
                enable_gqa=grouped,
            )
            return result.transpose(1, 2)

        return fused

    from transformers import AttentionInterface

    home = sys.modules[type(module).__module__]
    plain: Callable[..., Any] = getattr(home, "eager_attention_forward", None) or _missing(module)
    function = AttentionInterface().get_interface(name, plain)
    rest = {k: v for k, v in kwargs.items() if k != "is_causal"}

    def general(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            ends = torch.full((1, query.shape[2]), query.shape[2], device=query.device)
            mask = tree_mask(ends, query.dtype)
        result: Tensor = function(module, query, key, value, mask, **rest)[0]
        return result

    return general


def _missing(module: nn.Module) -> Callable[..., Any]:
    """Stand-in for a module whose file has no eager attention of its own."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{type(module).__name__} ({inspect.getfile(type(module))}) names no eager attention; "
            "load the model with attn_implementation='sdpa'"
        )

    return refuse
