"""A run made to fit the memory that there is, model by model, and what else makes cells fit.

Planning takes seconds, so a model whose weights are a small part of the memory is not planned
unless it is asked for: nothing of its run can come near.

Example::

    config, remarks = streamed_where_needed(config)
    plan = memory_plan(config.for_model(name), name)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from streamline.distributed.team import world_size
from streamline.distributed.work import shared
from streamline.engine.decoder import Decoder
from streamline.engine.memory import keep_to
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.progress import Progress
from streamline.run.cell import CellJob, expand
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import decided
from streamline.run.planning.estimate import (
    Estimate,
    plan_run,
    refuse_unfit,
    run_memory,
)
from streamline.run.planning.memory import plan_memory
from streamline.run.planning.plan import MARGIN, MemoryPlan, Row, gib
from streamline.run.planning.rates import on_accelerator
from streamline.run.planning.rows import rows_of
from streamline.run.planning.sizes import Sizes
from streamline.run.planning.work import resident
from streamline.run.recorder import Recorder
from streamline.sources.models import planned_model

__all__ = [
    "fitted", "fitted_alone", "kept_plan", "memory_plan", "possible",
    "streamed_where_needed", "told",
]  # fmt: skip

_PROCESSES = (2, 4, 8)  # that are tried where one does not hold a cell
_SMALL = 50  # times a model's weights: memory that nothing of its run comes near


def kept_plan(config: RunConfig, name: str, decoder: Decoder) -> MemoryPlan:
    """What one model's cells will hold; the process keeps to the memory that the run is given.

    Args:
        config: The run, as the model has it.
        name: The model.
        decoder: Its weights, on their device.

    Returns:
        The plan, of several processes the first one's; an empty one where memory is no question.
    """
    keep_to(config.memory, decoder.device)
    return shared(lambda: _needed_plan(config, name, decoder))


def _needed_plan(config: RunConfig, name: str, decoder: Decoder) -> MemoryPlan:
    """A model's plan, empty where memory is no question."""
    memory = run_memory(config)
    weights = resident(decoder, getattr(torch, config.dtype), streamed=False)
    small = config.memory is None and (memory is None or memory >= _SMALL * weights)
    if small or config.device_map is not None:
        return MemoryPlan(name, None)
    return memory_plan(config, name)


def possible(
    plan: MemoryPlan, jobs: Sequence[CellJob], recorder: Recorder, progress: Progress
) -> list[CellJob]:
    """The cells that memory holds; the others are recorded with what they need.

    Args:
        plan: Of their model; it is told.
        jobs: The cells.
        recorder: Writes the records.
        progress: Where to tell.
    """
    for line in told(plan) if plan.rows else ():
        progress.say(line)
    refused = {job.cell.label: plan.refused.get(job.cell.label) for job in jobs}
    for job in jobs:
        if (reason := refused[job.cell.label]) is not None:
            recorder.skipped(job, str(reason), memory=True)
    return [job for job in jobs if refused[job.cell.label] is None]


def memory_plan(config: RunConfig, name: str) -> MemoryPlan:
    """What one model's cells will hold.

    Args:
        config: The run, as the model has it, with nothing left open.
        name: The model.
    """
    decoder, methods, rows = rows_of(name, config, expand(config, name))
    sizes = Sizes(config, methods, decoder, accelerator=on_accelerator(config))
    plan = plan_memory(config, rows, sizes, run_memory(config))
    if config.device_map is not None:
        plan.spread = _where(config, decoder)
    _advise(plan, config, rows, sizes)
    return plan


def _advise(plan: MemoryPlan, config: RunConfig, rows: Sequence[Row], sizes: Sizes) -> None:
    """Say of each cell that a plan refuses what would make it fit.

    Args:
        plan: Of one model; cells that cannot be had as its layers are read one at a time, and that
            memory does not hold otherwise, are refused too.
        config: The run, as the model has it.
        rows: Its cells as planned.
        sizes: What their stages add.
    """
    if plan.memory is None:
        return
    whole = _Way(config, rows, stream=False)
    lacking = [
        there
        for row, there in zip(rows, whole.rows, strict=True)
        if there.reason is None and (row.cell.label in plan.refused or row.reason is not None)
    ]
    if not lacking:
        return
    needs = plan_memory(whole.config, whole.rows, sizes, memory=None).needs
    for row in [row for row in lacking if row.cell.label not in plan.refused]:
        size, _ = needs[row.cell.label]
        if not plan.fits(size):  # else it is had without --stream, as its reason says
            plan.refuses(row.cell.label, "having all layers at once", size)
    streamed = set[str]()
    if not config.stream and plan.refused:
        streamed = _Way(config, rows, stream=True).holds(sizes, plan.memory)
    shared, (n_devices, spread) = _shared(plan, config, rows, sizes), _spread(plan, whole, sizes)
    for label, refusal in plan.refused.items():
        size, work = needs[label]
        if not config.stream:
            refusal = replace(refusal, size=size, work=work)
        plan.refused[label] = replace(
            refusal,
            device=_with_margin(size),
            streamed=label in streamed,
            devices=n_devices if label in spread else 0,
            processes=shared.get(label, 0),
        )


class _Way:
    """The cells of a run as they would be, were it launched otherwise.

    Args:
        config: The run, as the model has it.
        rows: Its cells as planned.
        stream: Whether layers are read one at a time.
        processes: How many work together.
    """

    def __init__(
        self, config: RunConfig, rows: Sequence[Row], *, stream: bool, processes: int = 1
    ) -> None:
        self.config, self.rows = config.model_copy(update={"stream": stream}), rows
        if stream != config.stream or (stream and processes != world_size()):
            cells = [row.cell for row in rows]
            self.rows = rows_of(cells[0].model, self.config, cells, processes)[2]

    def holds(self, sizes: Sizes, memory: int, **more: Any) -> set[str]:
        """Labels of the cells that memory holds; more is given to the plan."""
        refused = plan_memory(self.config, self.rows, sizes, memory, **more).refused
        return {row.cell.label for row in self.rows if row.reason is None} - set(refused)


def _shared(
    plan: MemoryPlan, config: RunConfig, rows: Sequence[Row], sizes: Sizes
) -> dict[str, int]:
    """How many processes hold cells that one does not: each a part of a model that is trained."""
    found: dict[str, int] = {}
    if world_size() > 1 or not sizes.accelerator or not plan.refused:
        return found
    for n in _PROCESSES:
        way = _Way(config, rows, stream=config.stream, processes=n)
        held = way.holds(sizes, plan.memory or 0, processes=n)
        found |= dict.fromkeys((held & set(plan.refused)) - set(found), n)
    return found


def _spread(plan: MemoryPlan, whole: _Way, sizes: Sizes) -> tuple[int, set[str]]:
    """Devices of this machine, and the cells that they hold with a model's layers among them.

    What makes a model of its own builds it on one device.
    """
    config, n = whole.config, torch.cuda.device_count()
    here = config.executor == "local" and config.plan_for is None and sizes.accelerator
    if n < 2 or not here or world_size() > 1 or config.device_map is not None or not plan.refused:
        return n, set()
    own = {row.cell.label for row in whole.rows if sizes.methods[row.cell.method].returns_model}
    return n, whole.holds(sizes, plan.memory or 0, devices=n) - own


def _with_margin(size: int) -> float:
    """GiB of a device that holds so many bytes, rounded up to a tenth."""
    return math.ceil(10 * size / (1 - MARGIN) / 2**30) / 10


def _where(config: RunConfig, decoder: Decoder) -> str:
    """Where the layers of a model lie that is spread over devices, the first ones filled first."""
    size = getattr(torch, config.dtype).itemsize
    layers = [decoder.layer_parameters(index) * size for index in range(decoder.n_layers)]
    rest = decoder.n_parameters() * size - sum(layers)
    count = 1 if config.plan_for is not None else max(1, torch.cuda.device_count())
    alone = config.model_copy(update={"device_map": None})
    one = run_memory(alone)
    room = None if one is None else count * one * (1 - MARGIN) - rest
    there = 0
    while there < len(layers) and (room is None or sum(layers[: there + 1]) <= room):
        there += 1
    devices = "the accelerator" if count == 1 else f"{count} accelerators"
    if there == len(layers):
        return f"all layers lie on {devices}; what stages add is on one of them"
    return (
        f"{there} of {len(layers)} layers lie on {devices}, the others in main memory, from where "
        "they come for every batch; what stages add is on top of it"
    )


def fitted(config: RunConfig) -> tuple[RunConfig, Estimate]:
    """A run as memory allows it, with its plan.

    Args:
        config: The run.

    Returns:
        The run with nothing left open, with models streamed that memory does not hold, and its
        plan, whose remarks say so.
    """
    config = decided(config).config
    estimate, memory = plan_run(config), run_memory(config)
    if memory is None or estimate.memory_bytes <= memory * (1 - MARGIN):
        return config, estimate
    config, remarks = streamed_where_needed(config)
    if remarks:
        estimate = plan_run(config)
        estimate.remarks[:0] = remarks
    return config, estimate


def fitted_alone(config: RunConfig) -> tuple[RunConfig, MemoryPlan, list[str]]:
    """A run of one pruned model as memory allows it.

    Args:
        config: The run.

    Returns:
        The run as its model has it, with nothing left open, its plan, and what is to be said of it.

    Raises:
        ConfigError: If memory or disk are too small.
        UnsupportedModelError: If the method cannot do it with this model.
    """
    config, estimate = fitted(config)
    refuse_unfit(estimate, config)
    (name,) = config.models
    own = config.for_model(name)
    decoder = Decoder(planned_model(name, trust_remote_code=own.trust_remote_code))
    plan = _needed_plan(own, name, decoder)
    if plan.refused:
        raise ConfigError("; ".join(dict.fromkeys(map(str, plan.refused.values()))))
    reason = next((row.reason for row in estimate.rows if row.reason), None)
    if reason is not None:
        raise UnsupportedModelError(reason)
    return own, plan, [*estimate.remarks, *(told(plan) if plan.rows else ())]


def streamed_where_needed(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The run with layers read one at a time for models whose weights memory does not hold.

    Args:
        config: The run.

    Returns:
        The run, and what is to be said of it.
    """
    remarks: list[str] = []
    changed = dict(config.per_model)
    for name in config.models:
        own = config.for_model(name)
        memory = run_memory(own)
        if memory is None or own.stream or own.device_map is not None:
            continue
        try:
            decoder = Decoder(planned_model(name, trust_remote_code=own.trust_remote_code))
        except Exception:  # its cells will fail with that
            continue
        weights, streamed = (
            resident(decoder, getattr(torch, own.dtype), streamed=s) for s in (False, True)
        )
        usable = memory * (1 - MARGIN)
        if streamed <= usable < weights:
            changed[name] = {**changed.get(name, {}), "stream": True}
            remarks.append(
                f"{name}: its weights take {gib(weights)} and there are {gib(memory)} of device "
                "memory: layers are read one at a time (as --stream), and methods that need all "
                "of them at once are left out"
            )
    return (config.model_copy(update={"per_model": changed}) if remarks else config), remarks


def told(plan: MemoryPlan) -> list[str]:
    """A plan in lines, for a run's log."""
    there = "" if plan.memory is None else f" of {gib(plan.memory)}"
    lines = [f"memory planned: {gib(plan.peak)}{there} at the peak"]
    lines += [
        f"  {row.stage}{f' ({row.method})' if row.method else ''}: {gib(row.resident)} there, "
        f"{gib(row.added)} added"
        for row in plan.rows
    ]
    return [*lines, *(f"  {line}" for line in plan.decisions())]
