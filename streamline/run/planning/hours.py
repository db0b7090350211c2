"""How long a model's cells will take, stage by stage, before they are started.

Example::

    plan = plan_hours(own, rows, methods, decoder, asked_of(own))
    plan.seconds, plan.stages()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.engine.decoder import Decoder
from streamline.errors import reason
from streamline.evaluation.efficiency.allowance import QUICK_SECONDS, QUICK_SHARE
from streamline.evaluation.questions import Questions
from streamline.method import Method
from streamline.progress import Progress, clock, planned, planned_seconds, portions
from streamline.run.cell import Cell, CellJob
from streamline.run.config import RunConfig
from streamline.run.planning.amounts import STAGES, TEACHER, Amounts, Work, once
from streamline.run.planning.asked import Asked, asked_of, counted
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.run.planning.rates import Rates, on_accelerator, rates_for, why_unplanned
from streamline.run.planning.rows import rows_of
from streamline.run.shards.part import WHOLE, Part
from streamline.run.shards.telling import tell_rates

__all__ = [
    "TimePlan",
    "TimeRow",
    "cell_times",
    "expected",
    "expecting",
    "left_of",
    "plan_hours",
    "planned_times",
]

#: Least operations that are worth measuring a device for: ten seconds of a slow CPU.
WORTH = 1e12
_WORTH_SAYING = 10.0  # seconds
_SHOWN = 0.01  # of the whole that a search has a line of its own for
_LEAST_SPEED = 0.7  # of a measurement of speed that is made even if its time is up
_FULL_SPEED = 6.0  # times the quick one's rounds


@dataclass(frozen=True)
class TimeRow:
    """One line of a plan.

    Attributes:
        stage: One of :data:`streamline.run.planning.amounts.STAGES`, or ``load``.
        of: Whose it is.
        flops: Operations.
        seconds: How long it takes; None where nothing is known of the device.
    """

    stage: str
    of: str
    flops: float
    seconds: float | None


@dataclass
class TimePlan:
    """How long one model's cells will take.

    Attributes:
        model: The model.
        rows: Lines, in the order of the stages.
        rates: Of the device; None where nothing is known of it, or nothing is worth measuring it.
        untold: Methods that do not tell what their search takes.
        assumed: Tasks whose number of questions is assumed.
        why: Why there are no hours.
        cells: By label, what a cell takes in each stage: seconds, or operations where nothing is
            known of the device. What several share is with the first of them.
    """

    model: str
    rows: list[TimeRow] = field(default_factory=list)
    rates: Rates | None = None
    untold: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    why: str | None = None
    cells: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """All stages; None where nothing is known of the device."""
        return None if self.rates is None else sum(row.seconds or 0.0 for row in self.rows)

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, or operations where nothing is known of the device."""
        found = dict.fromkeys(("load", *STAGES), 0.0)
        for row in self.rows:
            found[row.stage] += row.flops if row.seconds is None else row.seconds
        return found

    def of(self, cells: Iterable[Cell], *stages: str) -> float:
        """What some cells take in some stages, in seconds, or in operations."""
        found = [self.cells.get(cell.label, {}) for cell in cells]
        return sum(own.get(stage, 0.0) for own in found for stage in stages)

    def places(
        self, joined: Sequence[CellJob], own: Sequence[CellJob]
    ) -> list[AbstractContextManager[None]]:
        """Places of these four in the whole, which is planned anew with this within them.

        Args:
            joined: As for :meth:`portions`.
            own: As for :meth:`portions`.
        """
        return [_replanned(self, place) for place in portions(self.portions(joined, own))]

    def portions(self, joined: Sequence[CellJob], own: Sequence[CellJob]) -> list[float]:
        """How long pruning, training, joint evaluation, and everything cell by cell take.

        Args:
            joined: Cells that share the dense model's layers.
            own: Cells that are models of their own.
        """
        cells, alone = ([job.cell for job in jobs] for jobs in (joined, own))
        tuned = [cell for cell in cells if cell.recovery != "none"]
        together = [cell for cell in cells if cell.recovery == "none"]
        return [
            self.of(cells, "calibrate", "prune"),
            self.of(cells, "train"),
            self.of(together, "evaluate", "speed"),
            self.of(alone, *STAGES) + self.of(tuned, "recover", "evaluate", "speed"),
        ]


def plan_hours(
    config: RunConfig,
    rows: Sequence[Row],
    methods: Mapping[str, Method],
    decoder: Decoder,
    asked: Asked,
    *,
    memory: MemoryPlan | None = None,
    rates: Rates | None = None,
) -> TimePlan:
    """Plan one model's cells.

    Args:
        config: The run, as the model has it.
        rows: Its cells as planned.
        methods: Each cell's method by its spec.
        decoder: The model; its weights may lie on the meta device.
        asked: What every model is asked.
        memory: How the stages are made to fit; None where that is not planned.
        rates: Of a device that was measured elsewhere; None for those of the run's own.
    """
    joined = [
        row
        for row in rows
        if row.reason is None
        and row.cell.recovery == "none"
        and not methods[row.cell.method].returns_model
    ]
    amounts = Amounts(
        decoder,
        methods,
        config,
        asked,
        accelerator=on_accelerator(config) if rates is None else rates.accelerator,
        together=len(joined),
        memory=memory,
    )
    by_cell = once({row.cell.label: amounts.of(row) for row in rows})
    works = [work for own in by_cell.values() for work in own]
    worth = config.plan_for is not None or sum(w.flops + w.algebra for w in works) >= WORTH
    why = None
    if rates is None:
        why = why_unplanned(config)
        try:
            rates = rates_for(config, decoder) if worth else None
        except RuntimeError as error:  # of torch: a full device, a format that it lacks
            why = f"the device cannot be measured: {reason(error)}"
    plan = TimePlan(
        rows[0].cell.model,
        rates=rates,
        untold=tuple(amounts.untold),
        assumed=asked.assumed,
        why=why,
    )
    for label, own in by_cell.items():
        for work in own:
            takes = work.flops + work.algebra if rates is None else rates.seconds(work)
            there = plan.cells.setdefault(label, {})
            there[work.stage] = there.get(work.stage, 0.0) + takes
    for stage in STAGES:
        plan.rows += _lines(stage, [w for w in works if w.stage == stage], rates)
    if rates is not None:
        size = amounts.resident
        plan.rows.insert(0, TimeRow("load", "the weights", 0.0, rates.loading(size)))
        _limit_speed(plan, config)
    return plan


def cell_times(
    config: RunConfig,
    jobs: Sequence[CellJob],
    questions: Questions,
    memory: MemoryPlan,
    progress: Progress,
    part: Part = WHOLE,
) -> TimePlan:
    """How long some cells of a model will take, by the questions that they are asked; it is told.

    Args:
        config: The run, as the model has it.
        jobs: The cells.
        questions: What each of them is asked.
        memory: How the stages are made to fit.
        progress: Where to tell.
        part: The part of the run that is worked; what its device does is told to the others.
    """
    cells = [job.cell for job in jobs]
    if not cells:
        return TimePlan("")
    # By the first of several processes: the others' devices have no room to be measured in.
    plan = shared(lambda: planned_times(config, cells, memory, counted(questions)))
    if part.name and plan.rates is not None and leads():
        tell_rates(part.folder(config.out), plan.rates)
    if plan.seconds is not None and plan.seconds >= _WORTH_SAYING:
        each = [f"{name} {clock(s)}" for name, s in plan.stages().items() if s >= 0.5]
        progress.say(f"time planned: about {clock(plan.seconds)} ({', '.join(each)})")
    return plan


def planned_times(
    config: RunConfig,
    cells: Sequence[Cell],
    memory: MemoryPlan | None,
    asked: Asked | None = None,
) -> TimePlan:
    """How long some cells of a model will take.

    Args:
        config: The run, as the model has it.
        cells: The cells.
        memory: How the stages are made to fit; None where that is not planned.
        asked: What every model is asked; None for what follows from the settings.
    """
    decoder, methods, rows = rows_of(cells[0].model, config, cells)
    return plan_hours(config, rows, methods, decoder, asked or asked_of(config), memory=memory)


_EXPECTED: ContextVar[Mapping[str, float | None]] = ContextVar("expected", default={})  # noqa: B039


@contextmanager
def expecting(times: Mapping[str, float | None]) -> Iterator[None]:
    """Within it, models are expected to take so many seconds each."""
    token = _EXPECTED.set(times)
    try:
        yield
    finally:
        _EXPECTED.reset(token)


def left_of(
    config: RunConfig, undone: Mapping[str, Sequence[Cell]], asked: Asked | None
) -> dict[str, float | None]:
    """What models are expected to take for the cells that are left of them.

    Args:
        config: The run.
        undone: The cells of each model that has some left.
        asked: What every model is asked.

    Returns:
        Seconds by model; None where nothing was expected of it.
    """
    found: dict[str, float | None] = dict.fromkeys(config.models, 0.0)
    for model, cells in undone.items():
        known, own = _EXPECTED.get().get(model), config.for_model(model)
        if cells:
            found[model] = None if known is None else planned_times(own, cells, None, asked).seconds
    return found


def expected(models: Sequence[str]) -> list[float] | None:
    """What some models are expected to take, in seconds; None unless that is known of all."""
    found = [_EXPECTED.get().get(model) for model in models]
    times = [seconds for seconds in found if seconds is not None]
    return times if times and len(times) == len(found) else None


@contextmanager
def _replanned(plan: TimePlan, place: AbstractContextManager[None]) -> Iterator[None]:
    """A portion of a model's work, the whole planned with what its questions and memory showed."""
    whole, before = planned_seconds(), _EXPECTED.get().get(plan.model)
    if whole is not None and before is not None and plan.seconds is not None:
        whole += plan.seconds - before
    with planned(whole), place:
        yield


def _lines(stage: str, works: Sequence[Work], rates: Rates | None) -> list[TimeRow]:
    """Lines of one stage: one, but for searches, of which each that takes long has its own."""
    timed = [(work, None if rates is None else rates.seconds(work)) for work in works]
    timed = [(work, s) for work, s in timed if work.flops or work.algebra or s]
    if not timed:
        return []
    if stage not in ("calibrate", "prune"):
        return [_line(stage, _name(stage, len({w.of for w in works} - {TEACHER})), timed)]
    whole = sum(work.flops for work, _ in timed) or 1.0
    own = [pair for pair in timed if pair[0].flops >= _SHOWN * whole or pair[0].algebra]
    rest = [pair for pair in timed if not any(pair is one for one in own)]
    found = [_line(stage, work.of, [(work, s)]) for work, s in own]
    return found + (
        [_line(stage, f"{len(rest)} other{'s' * (len(rest) > 1)}", rest)] if rest else []
    )


def _line(stage: str, of: str, timed: Sequence[tuple[Work, float | None]]) -> TimeRow:
    flops = sum(work.flops for work, _ in timed)
    seconds = [s for _, s in timed if s is not None]
    return TimeRow(stage, of, flops, sum(seconds) if len(seconds) == len(timed) else None)


def _name(stage: str, n: int) -> str:
    word = "cell" if stage == "train" else "model"
    return "shapes" if stage == "speed" else f"{n} {word}{'' if n == 1 else 's'}"


def _limit_speed(plan: TimePlan, config: RunConfig) -> None:
    """Measuring speed has a time of its own, which it keeps to but for its fewest rounds."""
    rest = sum(row.seconds or 0.0 for row in plan.rows if row.stage != "speed")
    for place, row in enumerate(plan.rows):
        if row.stage == "speed" and row.seconds is not None:
            allowed = config.efficiency_seconds or max(QUICK_SECONDS, QUICK_SHARE * rest)
            least, most = _LEAST_SPEED * row.seconds, row.seconds
            seconds = max(least, min(most, allowed))
            if config.efficiency == "full":
                seconds = _FULL_SPEED * row.seconds
            plan.rows[place] = TimeRow(row.stage, row.of, row.flops, seconds)
            for own in plan.cells.values():
                own["speed"] = own.get("speed", 0.0) * seconds / (row.seconds or 1.0)
