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
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from streamline.distributed.team import local
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.forward import TokenJob, run
from streamline.engine.paths import prefix_paths
from streamline.plan import Span
from streamline.progress import tell

__all__ = ["BATCH_TOKENS", "Fit", "fitted", "rehearse_fits", "together"]

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

    def rehearse(self, few: Decoder) -> None:  # noqa: B027 - by default nothing
        """Do what holds most memory of what follows, on tensors without data.

        Args:
            few: A model of the same shapes with a few of its layers.
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


def rehearse_fits(few: Decoder, fits: Collection[Fit], tokens: Tensor) -> None:
    """Hold what summing some fits in one pass holds, and then what follows for each of them.

    Args:
        few: As of :meth:`Fit.rehearse`.
        fits: What will be summed; their spans are those of a model of all layers, and are changed.
        tokens: Token ids without values, [N, T].
    """
    found = list({fit.key: fit for fit in fits}.values())
    for fit in found:
        fit.span = Span(1, 2)
    _sum(few, found, tokens, BATCH_TOKENS)
    for fit in found:
        fit.rehearse(few)


def _sum(decoder: Decoder, fits: Sequence[Fit], tokens: Tensor, batch_tokens: int) -> None:
    """One pass of the dense model, no deeper than needed."""
    for fit in fits:
        fit.begin(decoder)
    depths = sorted({depth for fit in fits for depth in (fit.span.start, fit.span.stop)})
    rows = max(1, batch_tokens // tokens.shape[1])
    jobs = [_Batch(ids, fits, iter(depths)) for ids in torch.split(tokens, rows)]
    with local(), torch.no_grad():
        for _ in run(prefix_paths(decoder, depths), jobs, progress=tell):
            pass


@dataclass(frozen=True)
class _Batch(TokenJob):
    """Some sequences, whose states are let go when the last fit has seen them.

    Attributes:
        fits: What is summed.
        depths: What states will come, in their order.
        outputs: What the MLP before a span has given, until the states after it are kept.
        held: States before spans that are not done.
    """

    fits: Sequence[Fit]
    depths: Iterator[int]
    outputs: list[Tensor] = field(default_factory=list)
    held: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    for_training: bool = True
    needs_head: ClassVar[bool] = False

    @contextmanager
    def around(self, decoder: Decoder, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Note what the MLP before each span that is to run gives, where that is read."""
        here = {id(module) for module in modules}

        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            self.outputs.append(output.clone())  # a layer may add to it in place

        hooks = []
        try:
            for start in {fit.span.start for fit in self.fits if fit.reads_mlp}:
                layer, family = decoder.layers[start - 1], decoder.family
                if id(layer) in here:  # what experts give is added up in the MLP
                    path = family.mlp if family.mixture else family.mlp_out
                    hooks.append(submodule(layer, path).register_forward_hook(note))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self, hidden: Tensor) -> Tensor:
        """The states, and what the MLP gave where that is read: [B, T, D] or [2, B, T, D]."""
        if not self.outputs:
            return hidden
        return torch.stack([hidden, self.outputs.pop().reshape(hidden.shape)])

    def answer(self, decoder: Decoder, kept: Tensor) -> None:
        """Add the batch to the fits whose span ends here."""
        depth, both = next(self.depths), kept.dim() == 4
        hidden, mlp = (kept[0], kept[1]) if both else (kept, None)
        for fit in self.fits:
            if fit.span.stop == depth:
                before, given = self.held[fit.span.start]
                fit.update(before, hidden, given if fit.reads_mlp else None)
        self.held[depth] = hidden, mlp
        for start in list(self.held):
            if all(f.span.stop <= depth for f in self.fits if f.span.start == start):
                del self.held[start]
