"""Frozen layers of a model of which each process has a part of the weights.

Where adapters or what is inserted are trained through a whole model, the layers' own weights are
frozen. PyTorch's ``fully_shard`` (FSDP2) divides them among the processes, and a layer's weights
are brought together while it runs, those of the next one meanwhile. They come from the files one
layer at a time, where no process holds them all (:func:`frozen`), or were in memory and come back
to it (:func:`lent`), where what training adds does not fit beside them. Adapters and what is
inserted each process has whole. The engine runs layer by layer, and accelerate's wrapper of a whole
model has nothing to wrap.

A layer keeps nothing for its gradients but its input, and runs once more for them. All processes
must run each layer equally often.

Example::

    with decoder.held():                                # embeddings, final norm and head
        frozen([model.layers, decoder.layers], decoder, lambda made: loss(*made).backward())

    lent([decoder.layers], decoder.device, lambda made: loss(*made).backward())
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence, Set
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from streamline.distributed.team import LostProcess, team
from streamline.distributed.work import agreed
from streamline.engine.assemble import shared_copy
from streamline.errors import UnsupportedModelError
from streamline.training.parts.shares import (
    brought_together,
    divided,
    in_order,
    processes,
    run_again,
    views_allowed,
)

__all__ = ["Source", "frozen", "lent"]

Result = TypeVar("Result")

Again = Callable[[], AbstractContextManager[None]]


class Source(Protocol):
    """Where the weights are: a :class:`streamline.streaming.decoder.StreamedDecoder`."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def device(self) -> torch.device:
        """Where the weights compute."""

    def layers_of(self, module: nn.Module) -> set[int]:
        """The layers whose weights a module uses."""

    def each(self, groups: Sequence[Hashable]) -> Generator[Any, None, None]:
        """Bring layers' weights into memory, one after the other."""


def frozen(
    models: Sequence[Sequence[nn.Module]],
    source: Source,
    work: Callable[[list[list[nn.Module]]], Result],
    trained: Iterable[nn.Parameter] = (),
    kept: Iterable[nn.Module] = (),
    again: Again = nullcontext,
) -> Result:
    """Work with layers whose weights are not in memory, of which each process has a part meanwhile.

    Args:
        models: The layers of each model, in their order; they stay as they are. Those that use no
            weight of the source run themselves.
        source: Where the weights are.
        work: Called with what runs in the place of the layers of each model.
        trained: Parameters that what runs has in common with them, whole.
        kept: Likewise modules within them.
        again: Called when a layer runs, for what is to be in force when it does so again.

    Returns:
        What the work gave.

    Raises:
        ConfigError: If processes share a GPU.
        UnsupportedModelError: If this process is alone, or a module uses weights of two layers.
    """
    if team().size == 1:
        raise UnsupportedModelError(
            f"{source.name} is trained with a part of its layers in each of several processes: "
            "launch it with torchrun or accelerate, or without --stream"
        )
    made = [list(layers) for layers in models]
    own = {id(parameter) for parameter in trained}
    part = _dividing(processes(source.device.type), own, kept, again)
    agreed(lambda: _divide(source, made, part))
    try:
        with views_allowed():
            return work(made)
    finally:
        made.clear()
        gc.collect()  # layers in parts refer to themselves


def _divide(
    source: Source, models: list[list[nn.Module]], part: Callable[[nn.Module], nn.Module]
) -> None:
    """Put a divided copy in the place of each layer, when its weights come."""
    waiting: dict[int, list[tuple[list[nn.Module], int]]] = {}
    for layers in models:
        for place, layer in enumerate(layers):
            indices = source.layers_of(layer)
            if len(indices) > 1:
                raise UnsupportedModelError(
                    f"a module of a pruned {source.name} uses weights of the layers "
                    f"{sorted(indices)}, which come one at a time: run it without --stream"
                )
            for index in indices:
                waiting.setdefault(index, []).append((layers, place))
    with closing(source.each(sorted(waiting))) as arrivals:
        for index in arrivals:
            for layers, place in waiting[index]:
                layers[place] = part(layers[place])
    in_order(*models)


def _dividing(
    mesh: DeviceMesh, trained: Set[int], kept: Iterable[nn.Module], again: Again
) -> Callable[[nn.Module], nn.Module]:
    """What makes a copy of a layer, of whose frozen weights this process keeps a part."""
    memo: dict[int, Any] = {id(one): one for one in kept}
    made = partial(_here, trained)
    return lambda layer: divided(run_again(shared_copy(layer, memo).eval(), again), mesh, made)


def _here(trained: Set[int], old: nn.Parameter) -> nn.Parameter:
    """The whole weight of which a part is kept; one that is trained is not divided."""
    if id(old) in trained:
        return old
    return nn.Parameter(old.detach().contiguous(), requires_grad=False)


def lent(
    models: Sequence[Sequence[nn.Module]],
    device: torch.device,
    work: Callable[[list[list[nn.Module]]], Result],
    trained: Iterable[nn.Parameter] = (),
    kept: Iterable[nn.Module] = (),
    again: Again = nullcontext,
) -> Result:
    """Work with layers of which each process keeps a part while it lasts.

    Meanwhile their own weights, and so those of all that share them, are empty; afterwards, and
    where all processes fail together, they are what they were.

    Args:
        models: The layers of each model, in their order.
        device: Where they are.
        work: Called with what runs in the place of the layers of each model.
        trained: Parameters that what runs has in common with them, whole.
        kept: Likewise modules within them.
        again: Called when a layer runs, for what is to be in force when it does so again.

    Returns:
        What the work gave.

    Raises:
        ConfigError: If processes share a GPU.
        LostProcess: If the weights cannot be brought together again.
    """
    mesh = processes(device.type)
    own = {id(parameter) for parameter in trained}
    part = _dividing(mesh, own, kept, again)
    made, whole = agreed(lambda: _lend(models, own, part))
    for old, _ in whole:
        old.data = old.data.new_empty(0)
    try:
        with views_allowed():
            result = agreed(lambda: work(made))
    except Exception:  # on all alike; what ends one process alone ends the run
        _put_back(whole, processes(device.type))  # the former ones may wait for ever
        raise
    _put_back(whole, mesh)
    made.clear()
    whole.clear()
    gc.collect()  # layers in parts refer to themselves
    return result


def _lend(
    models: Sequence[Sequence[nn.Module]],
    trained: Set[int],
    part: Callable[[nn.Module], nn.Module],
) -> tuple[list[list[nn.Module]], list[tuple[nn.Parameter, DTensor]]]:
    """Divided copies of layers, and each weight that is not trained beside its part."""
    made: list[list[nn.Module]] = []
    whole: dict[int, tuple[nn.Parameter, DTensor]] = {}
    for layers in models:
        made.append([])
        for layer in layers:
            weights = {n: p for n, p in layer.named_parameters() if id(p) not in trained}
            if not weights:
                made[-1].append(layer)
                continue
            copied = part(layer)
            made[-1].append(copied)
            parts = dict(copied.named_parameters())
            for name, old in weights.items():
                whole.setdefault(id(old), (old, cast("DTensor", parts[name])))
    in_order(*made)
    return made, list(whole.values())


def _put_back(whole: Sequence[tuple[nn.Parameter, DTensor]], mesh: DeviceMesh) -> None:
    """Give weights their values again."""

    def together() -> None:
        for old, part in whole:
            old.data = brought_together(part, part.to_local(), mesh)

    try:
        agreed(together)
    except Exception as error:
        raise LostProcess(
            f"the weights of which each of {team().size} processes had a part cannot be brought "
            f"together again ({error}). What is finished is kept; launch the same command again"
        ) from error
