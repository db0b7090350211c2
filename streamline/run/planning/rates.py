"""How fast a device is: what it does in a second, measured here or by a card's figures.

Measured anew by every process that plans something long, in less than a second: nothing is kept, so
that a busy hour is not remembered.

Example::

    rates = rates_for(config, decoder)
    rates.seconds(work)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from streamline.distributed.team import world_size
from streamline.engine.decoder import Decoder
from streamline.environment import pick_device, versions
from streamline.run.config import RunConfig
from streamline.run.planning.amounts import Work
from streamline.run.planning.cards import CARDS, Card

__all__ = ["Rates", "measured", "of_card", "on_accelerator", "rates_for", "why_unplanned"]

#: Of the rate of a single large product, what the stages reach: on an accelerator as measured on
#: one H200 with Llama-2-7B's shape in bfloat16 (`reports/gpu`: scoring 0.49), on a CPU as in the
#: embedded suite's records.
_REACHED, _REACHED_ON_CPU = 0.5, {"train": 0.55, "recover": 0.55}
_ELSE_ON_CPU = 0.7
#: Of a card's peak, what a single large product reaches: 791 of 989 TFLOP/s there.
_OF_PEAK = 0.8
#: Of a card's bandwidth, what copies reach.
_OF_BANDWIDTH = 0.85
#: Decompositions in float64 compared with products: SliceGPT's 65 of 4096 x 4096 took 39 s on
#: an H200.
_ALGEBRA = {True: 1 / 700, False: 1 / 20}
#: Seconds of a layer's call for a few rows: 71 ms for a step of five models of 28 layers there.
_LAUNCH = {True: 5e-4, False: 3e-4}
#: Bytes a second of weights from a disk, checked and put in place: 13.8 GB in 22 s beside it.
_DISK = 0.6e9
_TIMES = 5  # of which the fastest counts
_SHORTEST, _LONGEST = 0.3, 1.0  # seconds of one of the two measurements


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes:
        title: The device, for people.
        matrix: Operations in one large product of matrices.
        memory: Bytes that a copy reads and writes.
        accelerator: Whether it is one.
        origin: Where the figures are from, in words.
        processes: How many of them, with a device each, share the work.
    """

    title: str
    matrix: float
    memory: float
    accelerator: bool
    origin: str
    processes: int = 1

    def seconds(self, work: Work) -> float:
        """How long some work takes: computing, or waiting for memory, calls or a disk."""
        at, n = self.accelerator, self.processes if work.divided else 1
        computing = work.flops / (self.matrix * reached(work.stage, at) * n)
        waiting = max(work.moved / self.memory, work.launches * _LAUNCH[at])
        if work.stage == "evaluate":  # prompts are divided; an optimiser's step is everyone's
            waiting /= n
        algebra = work.algebra / (self.matrix * _ALGEBRA[at])
        return max(computing + waiting + algebra, work.fetched / _DISK)

    def loading(self, size: int) -> float:
        """Seconds until weights of so many bytes are in place."""
        return size / _DISK


def reached(stage: str, accelerator: bool) -> float:
    """Of the rate of a single large product, what a stage reaches."""
    return _REACHED if accelerator else _REACHED_ON_CPU.get(stage, _ELSE_ON_CPU)


def on_accelerator(config: RunConfig) -> bool:
    """Whether a run's device is, or is planned as, an accelerator."""
    if config.plan_for is not None:
        return True
    if config.device == "auto":
        return torch.cuda.is_available()
    return config.device.startswith("cuda")


def rates_for(config: RunConfig, decoder: Decoder) -> Rates | None:
    """The rates of what a run is planned for; None if it is not here and not named.

    Args:
        config: The run, as the model has it.
        decoder: The model, whose shapes are measured.

    Raises:
        RuntimeError: If the device cannot be measured.
    """
    found, n = _of_one(config, decoder), world_size()
    if found is None or n == 1:
        return found
    return replace(found, title=f"{n} processes, each on {found.title}", processes=n)


def _of_one(config: RunConfig, decoder: Decoder) -> Rates | None:
    """The rates of one process."""
    if config.plan_for is not None:
        return of_card(CARDS[config.plan_for], config.dtype)
    if why_unplanned(config) is not None:
        return None
    inner = getattr(decoder.config, "intermediate_size", None)
    width = decoder.hidden_size
    inner = inner if isinstance(inner, int) else 4 * width
    return measured(str(pick_device(config.device)), config.dtype, width, inner)


def why_unplanned(config: RunConfig) -> str | None:
    """Why there are no hours for a run, or None if there are."""
    if config.plan_for is not None:
        return None
    if config.executor != "local":
        return (
            "the machines that do the work are others: the run says its hours as soon as the first "
            "of them has measured its device; name their card with --plan-for"
        )
    if on_accelerator(config) and not torch.cuda.is_available():
        return f"{config.device} is not on this machine; name its card with --plan-for"
    return None


def of_card(card: Card, dtype: str) -> Rates:
    """The rates of a card by its figures.

    Args:
        card: The card.
        dtype: Number format of the weights.
    """
    peak = card.rate(dtype)
    return Rates(
        title=card.title,
        matrix=peak * _OF_PEAK,
        memory=card.bandwidth * 1e9 * _OF_BANDWIDTH,
        accelerator=True,
        origin=f"its peak in {dtype}, {peak / 1e12:,.0f} TFLOP/s, of which "
        f"{_OF_PEAK * _REACHED:.2f} are reached (as on an H200)",
    )


@lru_cache(maxsize=16)
def measured(device: str, dtype: str, width: int, inner: int) -> Rates:
    """The rates of a device of this machine.

    Args:
        device: Its name for torch.
        dtype: Number format of the weights.
        width: Hidden size of the model.
        inner: Size of its MLPs.
    """
    place = torch.device(device)
    accelerator = place.type == "cuda"
    rows = 8192 if accelerator else 512
    most = 1 << 15 if accelerator else 1024  # a larger product is no faster, and takes longer
    width, inner = min(width, most), min(inner, most)
    like = {"device": place, "dtype": getattr(torch, dtype)}
    like["generator"] = torch.Generator(place)  # the random state of all others stays
    left, right = torch.randn(rows, width, **like), torch.randn(inner, width, **like)
    repeats = 20 if accelerator else 2
    product = _fastest(place, lambda: torch.nn.functional.linear(left, right), repeats)
    from_here = torch.empty(1 << (30 if accelerator else 26), dtype=torch.uint8, device=place)
    to_there = torch.empty_like(from_here)
    copy = _fastest(place, lambda: to_there.copy_(from_here), 2)
    matrix = 2.0 * rows * width * inner / product
    return Rates(
        title=str(versions(device)["device"]),
        matrix=matrix,
        memory=2.0 * from_here.numel() / copy,
        accelerator=accelerator,
        origin=f"{matrix / 1e12:,.3g} TFLOP/s in {dtype} measured now, of which "
        f"{reached('evaluate', accelerator):g} are reached in scoring",
    )


@torch.no_grad()
def _fastest(place: torch.device, work: Callable[[], object], repeats: int) -> float:
    """Seconds of some work, at its fastest: a machine may be busy with other things too."""

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        elif place.type == "mps":
            torch.mps.synchronize()

    found, begun, number = float("inf"), time.perf_counter(), 0
    while True:
        wait()
        start = time.perf_counter()
        passed = start - begun
        if number > 1 and passed > (_SHORTEST if number > _TIMES else _LONGEST):
            return found
        for _ in range(repeats):
            work()
        wait()
        if number:  # the first warms up
            found = min(found, (time.perf_counter() - start) / repeats)
        number += 1
