"""The objectives of training: squared error of hidden states, and what all objectives share.

An objective runs one batch of tokens for several student groups and gives each one's summed error.
Here is the squared error of hidden states (the paper); :mod:`streamline.training.next_token` has
the language-model loss.

Example::

    HiddenStates(decoder, autocast=None).errors(ids, indices, groups, consume, store=None)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.paths import Path
from streamline.engine.transfer import onto
from streamline.plan import Span
from streamline.training.activations import ActivationStore, At, teacher_pass
from streamline.training.schedule import BatchSchedule
from streamline.training.state import TrainingState
from streamline.training.student import Recipe

__all__ = ["Consume", "HiddenStates", "Objective", "StudentGroup", "as_dtype", "mixed"]


@dataclass
class StudentGroup:
    """Students with one optimiser.

    Attributes:
        spans: The spans that they replace.
        modules: Their networks.
        recipe: How they are trained.
        batch_schedule: The batches of each step.
        state: Their parameters, optimiser and files.
        path: The pruned model, for the LM objective.
    """

    spans: list[Span]
    modules: nn.ModuleList
    recipe: Recipe
    batch_schedule: BatchSchedule
    state: TrainingState
    path: Path | None = None


#: Called with a group, its summed error, and the summed error of leaving its span out.
Consume = Callable[[StudentGroup, Tensor, "Tensor | None"], None]


class Objective(Protocol):
    """What is minimised: run a batch and give each group's summed error."""

    def n_terms(self, length: int) -> int:
        """Number of summands that one sequence adds to the error."""
        ...

    def depths(self, groups: Sequence[StudentGroup]) -> set[int]:
        """Depths of the dense path that are read; empty if none can be kept."""
        ...

    def modules(self, groups: Sequence[StudentGroup]) -> list[nn.Module]:
        """What runs beside what is trained, in the order of the layers."""
        ...

    def errors(
        self,
        ids: Tensor,
        indices: Tensor,
        groups: Sequence[StudentGroup],
        consume: Consume,
        store: ActivationStore | None,
    ) -> None:
        """Run one batch; gradients as the caller has set them."""
        ...


@dataclass(frozen=True)
class HiddenStates:
    """Squared error between a student's output and the span's, summed over tokens and features.

    ``parts`` run in the place of the modules with these ids, where each of several processes has a
    part of their weights.
    """

    decoder: Decoder
    autocast: torch.dtype | None
    parts: Mapping[int, nn.Module] | None = None

    def n_terms(self, length: int) -> int:
        """Tokens times features."""
        return length * self.decoder.hidden_size

    def depths(self, groups: Sequence[StudentGroup]) -> set[int]:
        """Both ends of every span."""
        return {d for group in groups for span in group.spans for d in (span.start, span.stop)}

    def modules(self, groups: Sequence[StudentGroup]) -> list[nn.Module]:
        """The layers up to the last stop."""
        return list(self.decoder.layers[: max(self.depths(groups))])

    def errors(
        self,
        ids: Tensor,
        indices: Tensor,
        groups: Sequence[StudentGroup],
        consume: Consume,
        store: ActivationStore | None,
    ) -> None:
        """One teacher pass, or what is kept of it; each student runs when its stop is reached."""
        depths = self.depths(groups)
        held: dict[int, Tensor] = {}
        last = {group.spans[0].start: 0 for group in groups}
        for group in groups:
            span = group.spans[0]
            last[span.start] = max(last[span.start], span.stop)
        training = torch.is_grad_enabled()
        with torch.no_grad():
            entry = self.decoder.enter(ids)

        def at(depth: int, hidden: Tensor) -> None:
            hidden = hidden if store is None else store.round(hidden)
            hidden = hidden.to(torch.float32)
            for group in groups:
                span = group.spans[0]
                if span.stop == depth:
                    with torch.set_grad_enabled(training):
                        self._compare(group, held[span.start], hidden, entry, consume)
            for start in [s for s in held if last[s] <= depth]:
                del held[start]
            if depth in last:
                held[depth] = hidden

        if store is None:
            self._teach(ids, entry, depths, at)
        elif store.holds(indices):
            for depth in sorted(depths):
                at(depth, onto(store.read(depth, indices), self.decoder.device))
        else:

            def keep(depth: int, hidden: Tensor) -> None:
                store.write(depth, indices, hidden)
                at(depth, hidden)

            self._teach(ids, entry, depths, keep)

    def _teach(self, ids: Tensor, entry: Entry, depths: set[int], at: At) -> None:
        """Show the dense model's states at some depths."""
        if self.parts is None:
            teacher_pass(self.decoder, ids, entry, depths, at)
            return
        hidden = entry.hidden
        for depth in range(max(depths) + 1):
            if depth:
                layer = self.parts[id(self.decoder.layers[depth - 1])]
                with torch.no_grad():
                    hidden = self.decoder.run(layer, hidden, entry, depth - 1)
            if depth in depths:
                at(depth, hidden)

    def _compare(
        self, group: StudentGroup, start: Tensor, stop: Tensor, entry: Entry, consume: Consume
    ) -> None:
        layer = group.spans[0].start
        call = as_dtype(entry, layer, torch.float32)
        with mixed(start.device, self.autocast):
            output = self.decoder.run(group.modules[0], start, call, layer)
        normalize = group.recipe.normalize
        error = squared_error(output.float(), stop.to(output.device), normalize)
        dropped = (
            None
            if torch.is_grad_enabled()
            else squared_error(start, stop.to(start.device), normalize)
        )
        consume(group, error, dropped)


def squared_error(output: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """Squared error summed over tokens and features.

    Args:
        output: What the network gave, [..., D], float32.
        target: What the span gave, of the same shape.
        normalize: Divide each token's error by the mean square of its target.

    Returns:
        A scalar, float32.
    """
    error = (output - target).square()
    if normalize:
        scale = target.square().mean(-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        error = error / scale
    return error.sum()


def mixed(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a dtype on the device's kind, or nothing for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def as_dtype(entry: Entry, layer: int, dtype: torch.dtype) -> Entry:
    """A batch whose call of one layer has its floating tensors (masks, rotations) in a dtype."""
    if entry.hidden.dtype == dtype:
        return entry
    args, kwargs = entry.calls[layer]
    calls = list(entry.calls)
    calls[layer] = (_cast(args, dtype), _cast(kwargs, dtype))
    return Entry(entry.hidden, calls)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value
