"""Prefill and decoding of one model, as steps that a clock can be held against.

Plain decoding keeps a cache that grows. On a GPU it is bound by the launches of kernels, not by
what they do; with a cache of fixed size a step is the same kernels on the same addresses each time,
so that it can be one CUDA graph or compiled.

Example::

    cache, ids = prefill(model, prompt(model, 8, 64), room=16, way="cache")
    step = stepper(model, cache, ids, "cache")
    step()                                      # decodes one token of each of 8 sequences
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["WAYS", "Step", "last_logits", "prefill", "prompt", "stepper", "synchronize"]

Step = Callable[[], None]

#: How decoding may be run, the best first; the first that works for a pair of models is taken.
WAYS = {
    ("cuda", "full"): ("cuda-graph", "compiled", "static-cache", "cache"),
    ("cuda", "quick"): ("static-cache", "cache"),
}

_TRIES = 3  # steps before a CUDA graph is captured


def prompt(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Token ids to begin with, [batch, length], int64; which ones does not matter to speed."""
    ids = torch.arange(batch * length, device=model.device) * 7919 + 3
    return (ids % int(model.config.vocab_size)).view(batch, length)


def last_logits(model: PreTrainedModel, ids: Tensor, cache: Any) -> Tensor:
    """Logits of the token after each sequence, [B, V]; ``cache`` takes the ids [B, T] in."""
    fewer = {"logits_to_keep": 1} if _keeps_last(type(model)) else {}
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, **fewer).logits
    found: Tensor = logits[:, -1]
    return found


def _keeps_last(kind: type) -> bool:
    """Whether a class of models computes the logits of the last token alone if it is asked to."""
    return "logits_to_keep" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def prefill(model: PreTrainedModel, ids: Tensor, *, room: int, way: str) -> tuple[Any, Tensor]:
    """Process prompts [B, T] all at once and choose each one's first token.

    Args:
        model: The model.
        ids: The prompts.
        room: Tokens that the cache must hold after them.
        way: One of :data:`streamline.results.blocks.efficiency.WAYS`.

    Returns:
        The cache and the first tokens, [B, 1].
    """
    if way == "cache":
        cache: Any = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + room)
    return cache, last_logits(model, ids, cache).argmax(-1, keepdim=True)


def stepper(model: PreTrainedModel, cache: Any, ids: Tensor, way: str) -> Step:
    """What decodes one token of every sequence each time it is called.

    Args:
        model: The model.
        cache: From :func:`prefill`; it must have room for the steps, and for some more where a
            graph is captured.
        ids: The last token of each sequence, [B, 1]; each step puts the next one there.
        way: As for :func:`prefill`.
    """
    forward: Any = last_logits
    if way == "compiled":
        forward = torch.compile(last_logits, mode="reduce-overhead")

    def step() -> None:
        if way == "compiled":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        ids.copy_(forward(model, ids, cache).argmax(-1, keepdim=True))

    return _graphed(step) if way == "cuda-graph" else step


def _graphed(step: Step) -> Step:
    """A step as one CUDA graph: recorded once, then run again on the same addresses."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_TRIES):  # what is done only once must not be recorded
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
