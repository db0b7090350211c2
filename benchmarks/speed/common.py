"""What every row of the speed table shares: paired timing, strict comparison, memory, the outcome.

A row runs our work and a peer's in the same process, alternating which goes first, compares the
results, and only then keeps the times. A result that differs raises :class:`Disagreement`, and the
row has no number.

Example::

    races = contest(3, {"ours": ours, "theirs": theirs}, compare)
    outcome = Outcome(name="sleb", work="...", against="...", target=1.8, races=races)
    outcome.ratio                                   # median of theirs / ours over the repetitions
"""

from __future__ import annotations

import cProfile
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch

from streamline.benchmarks.speed.peak import largest_resident, restart
from streamline.environment import versions
from streamline.errors import StreamlineError
from streamline.sources.models import load_model

__all__ = [
    "Disagreement", "Options", "Outcome", "Race", "contest", "counted", "loaded", "machine",
    "peak_bytes", "peaks", "profile", "require_close", "require_equal",
]  # fmt: skip

Size = Literal["quick", "default", "full"]
_PACKAGE = "streamline.benchmarks.speed"
_FEW = 2


class Disagreement(StreamlineError):
    """Two ways to do the same work gave different results, so their times mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a row is to be run.

    Attributes:
        size: ``quick`` (minutes for all rows), ``default`` (under half an hour), ``full`` (the
            sizes of the table, hours).
        repeats: Paired repetitions of each row.
        model: Name of the model.
        memory: Whether to measure peak memory in processes of their own.
    """

    size: Size = "default"
    repeats: int = 3
    model: str = "smollm2-135m-instruct"
    memory: bool = True

    @property
    def few_repeats(self) -> int:
        """Repetitions of rows of which one takes the peer most of a minute; all at full size."""
        return self.repeats if self.size == "full" else min(self.repeats, _FEW)


@dataclass(frozen=True)
class Race:
    """One repetition: what each contestant took, and what the comparison found.

    Attributes:
        wall_s: Wall-clock seconds by contestant.
        cpu_s: Processor seconds of this process by contestant; steadier on a shared machine.
        facts: What the comparison found (largest differences and the like).
        peak_bytes: Largest resident set by contestant, above what was resident when it began; None
            where the system cannot tell.
    """

    wall_s: dict[str, float]
    cpu_s: dict[str, float]
    facts: dict[str, Any]
    peak_bytes: dict[str, int | None] = field(default_factory=dict)


@dataclass(kw_only=True)
class Outcome:
    """What a row measured.

    Attributes:
        name: The row.
        work: What was done, with its size.
        against: The peer.
        target: The ratio asked for; None if the row has none.
        races: The paired repetitions.
        value: The number of rows that are no ratio (a fraction); None elsewhere.
        facts: Further findings, JSON.
        notes: Sentences for the reader: subsets, what the peer was spared, what bounds the row.
        memory: Peak bytes by contestant and size, or None if not measured.
        again: Our work once more, for a profile where the target is missed.
        load: The machine's load when the row began.
    """

    name: str
    work: str
    against: str
    target: float | None
    races: list[Race] = field(default_factory=list)
    value: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    again: Callable[[], Any] | None = None
    load: list[float] = field(default_factory=lambda: _load())

    @property
    def ratio(self) -> float | None:
        """Median over the repetitions of the peer's time over ours."""
        return self.ratio_of("ours")

    def ratio_of(
        self, contestant: str, clock: Literal["wall", "cpu"] = "wall", peer: str = "theirs"
    ) -> float | None:
        """Median of the peer's time over a contestant's; None without repetitions."""
        times = [race.wall_s if clock == "wall" else race.cpu_s for race in self.races]
        ratios = [time[peer] / time[contestant] for time in times if peer in time]
        return statistics.median(ratios) if ratios else None

    @property
    def missed(self) -> bool:
        """Whether there is a target and it was not reached."""
        reached = self.ratio if self.value is None else self.value
        return self.target is not None and reached is not None and reached < self.target

    def to_json(self) -> dict[str, Any]:
        """The outcome with its machine and versions."""
        rivals = sorted({name for race in self.races for name in race.wall_s} - {"theirs"})
        return {
            "row": self.name,
            "work": self.work,
            "against": self.against,
            "target": self.target,
            "ratio": self.ratio,
            "ratios": {
                name: {"wall": self.ratio_of(name), "cpu": self.ratio_of(name, "cpu")}
                for name in rivals
            },
            "value": self.value,
            "races": [vars(race) for race in self.races],
            "facts": self.facts,
            "notes": self.notes,
            "memory_bytes": self.memory,
            "machine": machine() | {"load_at_start": self.load},
            "versions": versions(),
        }


def contest(
    repeats: int,
    runs: Mapping[str, Callable[[int], Any]],
    compare: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[Race]:
    """Run the contestants in turn, another one first each time, and compare before timing counts.

    Args:
        repeats: Repetitions; each contestant is called with the number of the repetition.
        runs: Contestants by name, ``ours`` and ``theirs`` among them.
        compare: Given the results by name; raises `Disagreement` or returns facts.

    Returns:
        One race per repetition.
    """
    races = []
    names = list(runs)
    for index in range(repeats):
        results, wall, cpu = {}, {}, {}
        peak: dict[str, int | None] = {}
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            before = restart()
            started, used = time.perf_counter(), time.process_time()
            results[name] = runs[name](index)
            wall[name] = time.perf_counter() - started
            cpu[name] = time.process_time() - used
            peak[name] = None if before is None else largest_resident() - before
        facts = compare(results)
        races.append(Race(wall, cpu, facts, peak))
    return races


def profile(work: Callable[[], Any], n: int = 14) -> list[dict[str, Any]]:
    """Where the time of some work goes: the functions with most time of their own."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(row[2] for row in stats.values())
    rows = sorted(stats.items(), key=lambda item: -item[1][2])[:n]
    return [
        {
            "function": f"{name[0].rsplit('/', 1)[-1]}:{name[2]}",
            "calls": row[1],
            "seconds": round(row[2], 3),
            "share": round(row[2] / total, 3),
        }
        for name, row in rows
    ]


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
    mine = torch.tensor(list(ours), dtype=torch.float64)
    other = torch.tensor(list(theirs), dtype=torch.float64)
    gaps = (mine - other).abs()
    if relative:
        gaps = gaps / other.abs().clamp_min(1e-12)
    if not len(gaps):
        return 0.0
    worst = float(gaps.max())  # NaN if any is
    if not worst <= tolerance:
        place = int(gaps.nan_to_num(torch.inf).argmax())
        raise Disagreement(
            f"{what} differ by {worst:.3g} at {place} (ours {float(mine[place]):.8g}, theirs "
            f"{float(other[place]):.8g}), more than {tolerance:g}; no time is reported"
        )
    return worst


def counted(n: int, noun: str) -> str:
    """``1 question``, ``2 questions``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@lru_cache(maxsize=2)
def loaded(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """A model without gradients and its tokenizer, loaded once per process."""
    model, tokenizer = load_model(name, dtype=dtype)
    return model.requires_grad_(False), tokenizer


def machine() -> dict[str, Any]:
    """The machine that the numbers hold for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
        "load": _load(),
    }


def _load() -> list[float]:
    """Processes that wanted a core, over the last 1, 5 and 15 minutes."""
    return [round(value, 1) for value in os.getloadavg()]


def _processor() -> str:
    return str(versions()["device"])


def peak_bytes(module: str, function: str, *arguments: Any) -> dict[str, int]:
    """Peak memory of one call, in a process of its own.

    Args:
        module: Module of this package, for example ``spans``.
        function: A function in it that prepares, calls ``ready()``, and works: it is given
            ``ready`` first and then the arguments.
        *arguments: JSON values.

    Returns:
        ``peak``: largest resident set; ``before``: that at ``ready()``, with the model loaded.

    Raises:
        StreamlineError: If the process fails; the last line of its error is given.
    """
    command = [sys.executable, "-m", f"{_PACKAGE}.peak", module, function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StreamlineError(
            f"measuring the memory of {module}.{function}{arguments} failed: {last}"
        )
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peaks(module: str, model: str, sizes: Sequence[int], length: int) -> dict[str, Any]:
    """Peak memory of a row by side and size: ours at some sizes, the peer's at the first.

    Args:
        module: A row with ``measure_ours`` and ``measure_theirs``, called with the model's name,
            a size and a length; see :func:`peak_bytes`.
        model: The model's name.
        sizes: Samples or tokens.
        length: Tokens of a sequence.
    """
    return {
        side: {
            str(size): peak_bytes(module, f"measure_{side}", model, size, length) for size in chosen
        }
        for side, chosen in (("ours", sizes), ("theirs", sizes[:1]))
    }
