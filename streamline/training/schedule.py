"""When training does what: the order of the data, optimiser steps and their learning rates.

Everything here is a pure function of a seed and a step number, so a run that was killed resumes
exactly where it was, and two runs with one seed see the same batches whatever else is trained
beside them. So students may be trained in waves, as many at once as memory holds, each to its end
before the next: that changes no number and costs a teacher pass more. Those that wait, and those
that are done, lie in main memory.

Example::

    batch_schedule = BatchSchedule(n_sequences=1000, batch_sequences=64, epochs=2, evaluations=10)
    schedule = Schedule(n_steps=batch_schedule.n_steps, peak=2e-4, final=5e-5, warmup_steps=1)
    for step, indices in batch_schedule.batches(seed=0):
        learning_rate = schedule.at(step)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from streamline.errors import ConfigError

__all__ = [
    "COPIES", "BatchSchedule", "Schedule", "data_order", "divided_bytes", "divided_numbers",
    "divides", "packed", "taking_turns", "training_bytes", "waves",
]  # fmt: skip

#: What is held of each trained number, all in float32: itself, gradient, two moments, the best.
COPIES = 5


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate at each optimiser step.

    Linear from 0 to the peak over the warm-up, then falling so that the last step has the final
    learning rate exactly.

    Attributes:
        n_steps: Optimiser steps in all.
        peak: Largest learning rate, reached at the last step of the warm-up.
        final: Learning rate at step ``n_steps``.
        warmup_steps: Steps of the warm-up; cut to ``n_steps - 1`` so that the end is reached.
        shape: How it falls, ``"cosine"`` or ``"linear"``.
    """

    n_steps: int
    peak: float
    final: float = 0.0
    warmup_steps: int = 0
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.n_steps < 1 or self.warmup_steps < 0:
            raise ConfigError(
                f"a schedule needs n_steps >= 1 and warmup_steps >= 0, got {self.n_steps} and "
                f"{self.warmup_steps}"
            )
        if self.shape not in ("cosine", "linear"):
            raise ConfigError(f"schedule shape must be 'cosine' or 'linear', got {self.shape!r}")

    def at(self, step: int) -> float:
        """Learning rate of one optimiser step.

        Args:
            step: From 1 to ``n_steps``.

        Raises:
            ValueError: If the step lies outside the run.
        """
        if not 1 <= step <= self.n_steps:
            raise ValueError(f"step {step} lies outside 1..{self.n_steps}")
        warmup = min(self.warmup_steps, self.n_steps - 1)
        if step <= warmup:
            return self.peak * step / warmup
        progress = (step - warmup) / (self.n_steps - warmup)
        if self.shape == "linear":
            fraction = 1.0 - progress
        else:
            fraction = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final + (self.peak - self.final) * fraction


def data_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of ``n`` sequences in one epoch: a permutation, [n], int64, on the CPU."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (2**63))
    return torch.randperm(n, generator=generator)


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """Optimiser batches over several epochs; the last batch of an epoch may be smaller.

    Attributes:
        n_sequences: Training sequences per epoch.
        batch_sequences: Sequences per optimiser step.
        epochs: Passes over the data.
        evaluations: Validations during training, the one at the end included.
    """

    n_sequences: int
    batch_sequences: int
    epochs: int
    evaluations: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return math.ceil(self.n_sequences / self.batch_sequences)

    @property
    def n_steps(self) -> int:
        """Optimiser steps in all."""
        return self.steps_per_epoch * self.epochs

    def batches(self, seed: int, first_step: int = 1) -> Iterator[tuple[int, Tensor]]:
        """The batches from some step on.

        Args:
            seed: Seed of the order.
            first_step: Where to begin, from 1.

        Yields:
            ``(step, indices)``: the step's number and its sequences, [up to batch_sequences].
        """
        for epoch in range((first_step - 1) // self.steps_per_epoch, self.epochs):
            order = data_order(self.n_sequences, seed, epoch)
            for index, indices in enumerate(torch.split(order, self.batch_sequences)):
                step = epoch * self.steps_per_epoch + index + 1
                if step >= first_step:
                    yield step, indices

    def sequences_before(self, step: int) -> int:
        """Sequences that were used in the steps before one."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        return epoch * self.n_sequences + index * self.batch_sequences

    def due(self, step: int) -> bool:
        """Whether the validation loss is to be measured after a step."""
        before = (step - 1) * self.evaluations // self.n_steps
        return step == self.n_steps or step * self.evaluations // self.n_steps > before


class _Sized(Protocol):
    @property
    def n_parameters(self) -> int: ...


class _Group(Protocol):
    """Networks with one optimiser: a :class:`streamline.training.objectives.StudentGroup`."""

    modules: nn.ModuleList

    @property
    def state(self) -> _Sized: ...


AnyGroup = TypeVar("AnyGroup", bound=_Group)


def training_bytes(n_parameters: int) -> int:
    """Bytes that a network of so many parameters holds while it is trained."""
    return 4 * COPIES * n_parameters


def divides(n_parameters: int, room: int, n_processes: int, *, able: bool = True) -> bool:
    """Whether each of several processes trains a part of a model's weights, not each all of them.

    It does where they would take more than half of its memory, since a step computes beside them.

    Args:
        n_parameters: Of the model.
        room: Bytes that a process may take beside the models that it holds.
        n_processes: How many there are.
        able: Whether they can; if not, all is tried as long as memory holds the weights at all.
    """
    return n_processes > 1 and training_bytes(n_parameters) * (2 if able else 1) > room


def divided_bytes(n_parameters: int, layers: Sequence[int], n_processes: int) -> int:
    """Bytes that each process holds of weights that are trained in parts, at most.

    Args:
        n_parameters: Of the whole model.
        layers: Of each of its layers.
        n_processes: How many there are.
    """
    parts = sum(-(-size // n_processes) for size in layers)
    # Of a layer and the next, weights and what they come in; of one, gradients and what is sent.
    whole = 6 * max(layers, default=0)
    return training_bytes(n_parameters - sum(layers) + parts) + 4 * whole


def divided_numbers(rest: int, models: Sequence[Sequence[int]], n_processes: int) -> int:
    """Frozen weights that each process holds of models of whose layers it has a part, at most.

    Args:
        rest: Numbers outside the layers, in all models together.
        models: Numbers in the layers of each.
        n_processes: How many processes there are.
    """
    every = [size for layers in models for size in layers]
    parts = sum(-(-size // n_processes) for size in every)
    return rest + parts + 4 * max(every, default=0)  # a layer, the next, and what they come in


def waves(groups: Sequence[AnyGroup], memory: int | None) -> list[list[AnyGroup]]:
    """Groups divided so that each part fits into some memory; a part keeps their order.

    Args:
        groups: What could be trained together.
        memory: Bytes that the groups of a part may hold; None for no bound. A group that needs
            more is a part of its own.
    """
    sizes = [training_bytes(group.state.n_parameters) for group in groups]
    return [[groups[place] for place in part] for part in packed(sizes, memory)]


def packed(sizes: Sequence[int], room: int | None) -> list[list[int]]:
    """The places of some sizes, divided into few parts that each fit: the largest are placed first.

    Args:
        sizes: What each takes.
        room: Of a part; None for no bound. A size that is larger is a part of its own.
    """
    parts: list[list[int]] = []
    loads: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        size = sizes[place]
        fits = (n for n, load in enumerate(loads) if room is None or load + size <= room)
        number = next(fits, len(parts))
        if number == len(parts):
            parts.append([])
            loads.append(0)
        parts[number].append(place)
        loads[number] += size
    return sorted(map(sorted, parts))


def taking_turns(
    parts: Sequence[Sequence[AnyGroup]], device: torch.device | None
) -> Iterator[Sequence[AnyGroup]]:
    """The parts one by one, each on the device while its turn lasts, else in main memory.

    Args:
        parts: Waves, in their order; each group in one of them.
        device: Where they are trained; None where all stay where they are.
    """
    for part in parts:
        for group in part if device else ():
            group.modules.to(device)
        yield part
        for group in part if device else ():
            group.modules.to("cpu")
