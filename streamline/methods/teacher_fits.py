"""What methods fit to the dense model's states in closed form, for any number of them in one pass.

A :class:`Fit` sums over the states at the two ends of a span. :func:`fitted` runs the dense model
for some fits, no deeper than the last of them; within :func:`together` those of several methods
have been summed in one pass beforehand, with the same numbers, and none runs for them again.

Example::

    (moments,) = fitted(decoder, [LinearFit(Span(8, 12))], tokens)

Notation: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from streamline.distributed.team import local
from streamline.engine.decoder import Decoder, submodule
from streamline.plan import Span
from streamline.training.activations import teacher_pass

__all__ = ["Fit", "fitted", "together"]

#: Tokens of a forward pass; sums depend on it in their last bits, so that it is one for all.
BATCH_TOKENS = 4096


class Fit(ABC):
    """Sums over the states at the ends of a span; those of equal keys are one.

    Args:
        span: The layers.
        reads_mlp: Whether the output of the MLP before the span is wanted too.
    """

    def __init__(self, span: Span, *, reads_mlp: bool = False) -> None:
        self.span, self.reads_mlp = span, reads_mlp

    @property
    def key(self) -> Hashable:
        """What decides the sums, beside model and tokens."""
        return type(self).__qualname__, self.span.start, self.span.stop

    @abstractmethod
    def begin(self, decoder: Decoder) -> None:
        """Start from nothing."""

    @abstractmethod
    def update(self, start: Tensor, stop: Tensor, mlp: Tensor | None) -> None:
        """Add a batch.

        Args:
            start: States before the span, [B, T, D].
            stop: States after it, [B, T, D].
            mlp: What the MLP before the span gave, if it is read; [B, T, D] or [B * T, D].
        """


AnyFit = TypeVar("AnyFit", bound=Fit)


@dataclass(frozen=True)
class _Together:
    """Fits that are summed already.

    Attributes:
        decoder: The dense model.
        tokens: What they were summed over, [N, T].
        done: The fits by their keys.
    """

    decoder: Decoder
    tokens: Tensor
    done: dict[Hashable, Fit]


_together: ContextVar[_Together | None] = ContextVar("together", default=None)


@contextmanager
def together(decoder: Decoder, fits: Collection[Fit], tokens: Tensor) -> Iterator[None]:
    """Sum some fits in one pass now; :func:`fitted` takes them within.

    Args:
        decoder: The dense model.
        fits: What will be asked for.
        tokens: Token ids, [N, T].
    """
    found = {fit.key: fit for fit in fits}
    _sum(decoder, list(found.values()), tokens, BATCH_TOKENS)
    token = _together.set(_Together(decoder, tokens, found))
    try:
        yield
    finally:
        _together.reset(token)


def fitted(
    decoder: Decoder, fits: Sequence[AnyFit], tokens: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> list[AnyFit]:
    """Fits with their sums over some tokens: those that are there, the others now in one pass.

    Args:
        decoder: The dense model; left as it was.
        fits: What is wanted; those of equal keys are summed once.
        tokens: Token ids, [N, T].
        batch_tokens: Tokens of a forward pass.

    Returns:
        For each the one that was summed; their sums must not be changed.
    """
    shared, known = _together.get(), dict[Hashable, Any]()
    if shared is not None and shared.decoder is decoder and batch_tokens == BATCH_TOKENS:
        known = shared.done if torch.equal(shared.tokens, tokens) else {}
    todo = {fit.key: fit for fit in fits if fit.key not in known}
    if todo:
        _sum(decoder, list(todo.values()), tokens, batch_tokens)
    return [known.get(fit.key) or todo[fit.key] for fit in fits]


def _sum(decoder: Decoder, fits: Sequence[Fit], tokens: Tensor, batch_tokens: int) -> None:
    """One pass of the dense model, no deeper than needed; states are let go when they are used."""
    last: dict[int, int] = {}
    for fit in fits:
        fit.begin(decoder)
        span = fit.span
        last[span.start] = max(last.get(span.start, 0), span.stop)
    held: dict[int, tuple[Tensor, Tensor | None]] = {}
    outputs: dict[int, Tensor] = {}

    def at(depth: int, hidden: Tensor) -> None:
        for fit in fits:
            if fit.span.stop == depth:
                before, mlp = held[fit.span.start]
                fit.update(before, hidden, mlp if fit.reads_mlp else None)
        for start in [start for start in held if last[start] <= depth]:
            del held[start]
        if depth in last:
            held[depth] = hidden, outputs.pop(depth, None)

    depths = {depth for fit in fits for depth in (fit.span.start, fit.span.stop)}
    read = {fit.span.start for fit in fits if fit.reads_mlp}
    with _noting(decoder, read, outputs), local(), torch.no_grad():
        for ids in torch.split(tokens, max(1, batch_tokens // tokens.shape[1])):
            teacher_pass(decoder, ids, decoder.enter(ids), depths, at)


@contextmanager
def _noting(decoder: Decoder, starts: set[int], outputs: dict[int, Tensor]) -> Iterator[None]:
    """Note what the MLP before each of some layers gives."""

    def note(start: int, module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[start] = output.clone()  # a layer may add to it in place

    hooks = []
    try:
        for start in starts:
            family = decoder.family  # what experts give is added up in the MLP
            path = family.mlp if family.mixture else family.mlp_out
            out = submodule(decoder.layers[start - 1], path)
            hooks.append(out.register_forward_hook(partial(note, start)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
