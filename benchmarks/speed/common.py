"""What every row of the speed table shares: paired timing, comparison before times, the outcome.

A row does the same work in our way and in a peer's, in one process, alternating which goes first.
The results are compared, and only then are the times kept: a result that differs raises
:class:`Disagreement`, and the row has no number.

Example::

    outcome = Outcome(name="sleb", work="...", against="...", target=1.8)
    outcome.races = contest(3, ours, theirs, compare)
    outcome.ratio()                 # median of theirs / ours over the repetitions
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from streamline.environment import versions
from streamline.errors import StreamlineError
from streamline.run.commands import checkout
from streamline.sources.batches import token_batches
from streamline.sources.models import load_model
from streamline.sources.texts import load_texts

__all__ = [
    "Disagreement", "Options", "Outcome", "Race", "Size", "contest", "loaded", "require_close",
    "require_equal", "samples",
]  # fmt: skip

Size = Literal["quick", "default", "full"]


class Disagreement(StreamlineError):
    """Two ways to do the same work gave different results, so their times mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a row is to be run.

    Attributes:
        size: ``quick`` (the smallest), ``default`` (under half an hour for the table), ``full``
            (hours).
        repeats: Paired repetitions.
        model: Name of the model.
    """

    size: Size = "default"
    repeats: int = 3
    model: str = "smollm2-135m-instruct"

    @property
    def few_repeats(self) -> int:
        """Repetitions where one takes the peer most of a minute: two, but all at full size."""
        return self.repeats if self.size == "full" else min(self.repeats, 2)


@dataclass(frozen=True, kw_only=True)
class Race:
    """One repetition; each mapping has ``ours`` and ``theirs``.

    Attributes:
        wall_s: Wall-clock seconds.
        cpu_s: Processor seconds of this process, steadier on a shared machine.
        peak_bytes: Largest resident set beyond what was resident before; None where the system
            cannot tell.
        facts: What the comparison found, such as the largest difference.
    """

    wall_s: dict[str, float]
    cpu_s: dict[str, float]
    peak_bytes: dict[str, int | None]
    facts: dict[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """What a row measured.

    Attributes:
        name: The row.
        work: What was done, with its size.
        against: The peer.
        target: The ratio to reach; None if there is none.
        races: The paired repetitions.
        facts: Further findings, JSON.
        notes: Sentences for the reader: subsets, what the peer was spared, what bounds the row.
    """

    name: str
    work: str
    against: str
    target: float | None = None
    races: list[Race] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratio(self, clock: Literal["wall", "cpu"] = "wall") -> float | None:
        """Median over the repetitions of the peer's time over ours; None without any."""
        times = [race.wall_s if clock == "wall" else race.cpu_s for race in self.races]
        return statistics.median(t["theirs"] / t["ours"] for t in times) if times else None

    def to_json(self) -> dict[str, Any]:
        """The outcome with its ratios, day, commit, machine and versions."""
        return asdict(self) | {
            "ratio": self.ratio(),
            "ratio_cpu": self.ratio("cpu"),
            "made": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": checkout()},
            "machine": _machine(),
            "versions": versions(),
        }


def contest(
    repeats: int,
    ours: Callable[[int], Any],
    theirs: Callable[[int], Any],
    compare: Callable[[Any, Any], dict[str, Any]],
) -> list[Race]:
    """Do the work in both ways, the other one first each time, and compare before times count.

    Args:
        repeats: Repetitions; each side is called with the number of the repetition.
        ours: Our way.
        theirs: The peer's.
        compare: Given our result and the peer's; raises `Disagreement` or returns facts.
    """
    races = []
    sides = [("ours", ours), ("theirs", theirs)]
    for index in range(repeats):
        found: dict[str, Any] = {}
        wall, cpu, peak = {}, {}, {}
        for side, work in sides if index % 2 == 0 else sides[::-1]:
            before = _restart_peak()
            started, used = time.perf_counter(), time.process_time()
            found[side] = work(index)
            wall[side] = time.perf_counter() - started
            cpu[side] = time.process_time() - used
            peak[side] = None if before is None else _peak() - before
        facts = compare(found["ours"], found["theirs"])
        races.append(Race(wall_s=wall, cpu_s=cpu, peak_bytes=peak, facts=facts))
    return races


def require_equal(what: str, ours: Any, theirs: Any) -> None:
    """Refuse results that are not the same.

    Raises:
        Disagreement: If they differ; names the first place where they do.
    """
    if ours == theirs:
        return
    detail = f"ours {ours!r}, theirs {theirs!r}"
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            detail = f"{len(ours)} of ours, {len(theirs)} of theirs"
        else:
            place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            detail = f"at {place}: ours {ours[place]!r}, theirs {theirs[place]!r}"
    raise Disagreement(f"{what} differ ({detail}); no time is reported")


def require_close(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    tolerance: float,
    *,
    relative: bool = False,
) -> float:
    """Refuse numbers that are further apart than a tolerance.

    Args:
        what: Names them in the error.
        ours: Our numbers.
        theirs: The peer's.
        tolerance: Largest allowed difference.
        relative: Whether differences are divided by the peer's number.

    Returns:
        The largest difference.

    Raises:
        Disagreement: If the counts differ, a number is not finite, or a difference is too large.
    """
    require_equal(f"counts of {what}", len(ours), len(theirs))
    if not len(ours):
        return 0.0
    mine = torch.tensor(list(ours), dtype=torch.float64)
    other = torch.tensor(list(theirs), dtype=torch.float64)
    gaps = (mine - other).abs()
    if relative:
        gaps = gaps / other.abs().clamp_min(1e-12)
    worst = float(gaps.max())  # NaN if any is
    if not worst <= tolerance:
        place = int(gaps.nan_to_num(torch.inf).argmax())
        raise Disagreement(
            f"{what} differ by {worst:.3g} at {place} (ours {float(mine[place]):.8g}, theirs "
            f"{float(other[place]):.8g}), more than {tolerance:g}; no time is reported"
        )
    return worst


@lru_cache(maxsize=1)
def loaded(name: str) -> tuple[Any, Any]:
    """A model in float32 without gradients, and its tokenizer, loaded once per process."""
    model, tokenizer = load_model(name, dtype="float32")
    return model.requires_grad_(False), tokenizer


def samples(tokenizer: Any, n: int, length: int) -> Tensor:
    """Sequences of the packaged text, [n, length]."""
    texts = [document.text for document in load_texts("packaged", seed=0, n_documents=60)]
    return token_batches(texts, tokenizer, n_samples=n, length=length, seed=0)


def _machine() -> dict[str, Any]:
    """The machine that the numbers hold for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": str(versions()["device"]),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def _peak() -> int:
    """Largest resident set of this process since `_restart_peak`, in bytes; Linux alone tells."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM:")) * 1024


def _restart_peak() -> int | None:
    """Return freed memory and count the largest resident set from here on.

    Returns:
        Bytes resident now, or None where the count cannot be started anew.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _peak()
    except (OSError, AttributeError, TypeError):
        return None
