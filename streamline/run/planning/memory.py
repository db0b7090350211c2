"""What a model's cells hold on the device, stage by stage, and what follows from it.

Weights are counted by shape and number format; what the stages add is rehearsed on tensors without
data (:mod:`streamline.run.planning.sizes`). From the memory that there is follow: how many
networks are trained at once, whether those that wait lie in main memory, the tokens of a batch, and
which cells cannot be had, each with the number that it needs.

Example::

    plan = plan_memory(own, rows, Sizes(own, methods, decoder, accelerator=True), 24 * 2**30)
    plan.peak, plan.refused
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from streamline.distributed.team import world_size
from streamline.evaluation.efficiency.measure import BATCHES
from streamline.evaluation.generation.engine import CPU_CACHE, ROWS
from streamline.evaluation.scoring.token_budget import ACCELERATOR_TOKENS, CPU_TOKENS
from streamline.run.config import RunConfig
from streamline.run.planning import work
from streamline.run.planning.asked import asked_of
from streamline.run.planning.parts import Parts
from streamline.run.planning.plan import MemoryPlan, MemoryRow, Row
from streamline.run.planning.sizes import Sizes
from streamline.training.schedule import packed, training_bytes

__all__ = ["plan_memory"]

_LEAST_TOKENS = 512  # of a batch


def plan_memory(
    config: RunConfig,
    rows: Sequence[Row],
    sizes: Sizes,
    memory: int | None,
    processes: int | None = None,
    devices: int = 1,
) -> MemoryPlan:
    """Plan one model's cells.

    Args:
        config: The run, as the model has it.
        rows: Its cells as planned.
        sizes: What their stages add.
        memory: Bytes that may be held, or None if that is unknown.
        processes: How many, each with so much, share the work; None for as many as there are.
        devices: How many, each with so much, the layers are spread over; what stages add is planned
            to be on the fullest of them.
    """
    found = MemoryPlan(rows[0].cell.model, memory)
    left, processes = [row for row in rows if row.reason is None], processes or world_size()
    while True:
        _Planner(config, left, sizes, found, processes, devices).plan()
        still = [row for row in left if row.cell.label not in found.refused]
        if len(still) == len(left):
            return found
        left = still  # without what the others would hold
        found = MemoryPlan(found.model, memory, refused=found.refused, needs=found.needs)


@dataclass
class _Planner:
    """Makes one :class:`MemoryPlan`; arguments as for :func:`plan_memory`."""

    config: RunConfig
    rows: list[Row]
    sizes: Sizes
    found: MemoryPlan
    processes: int
    devices: int

    def __post_init__(self) -> None:
        """What all stages look at."""
        self.methods, self.decoder = self.sizes.methods, self.sizes.decoder
        self.accelerator, self.dtype = self.sizes.accelerator, self.sizes.dtype
        self.weights = work.resident(self.decoder, self.dtype, streamed=self.config.stream)
        if self.devices > 1:
            self.weights = work.spread(self.decoder, self.dtype, self.devices)
        laid_out = not (self.accelerator or self.config.stream)
        self.copies = work.laid_out(self.decoder, self.dtype, self.weights) if laid_out else 0
        self.parts = Parts(
            self.decoder, self.dtype, self.weights, self.found, self.processes, self.accelerator,
            self.config.stream,
        )  # fmt: skip

    def plan(self) -> None:
        """All stages; what a cell needs alone decides whether it is refused."""
        pruned = [row for row in self.rows if row.cell.sparsity]
        score = self.sizes.scoring(_LEAST_TOKENS) + self.copies
        calibrations = self._calibrations(pruned)
        trained = [r for r in self._left(pruned) if self.methods[r.cell.method].trains]
        steps = self._steps(trained)
        networks = {label: sum(step.networks) for label, step in steps.items()}
        total = sum(networks.values())
        self._calibrate(pruned, calibrations, total * 4)
        self._train({r.cell.identity[:-1]: steps[r.cell.label] for r in self._left(trained)}, total)
        self._tune([row for row in self._left(self.rows) if row.cell.recovery != "none"], networks)
        self._own([r for r in self._left(pruned) if self._is_own(r)], score, calibrations)
        self._evaluate((total + self._untrained(pruned)) * self.dtype.itemsize)

    # Stages --------------------------------------------------------------------------------------

    def _calibrations(self, pruned: Sequence[Row]) -> dict[str, int]:
        """What calibrating for each method adds; methods that it leaves no room are refused."""
        found: dict[str, int] = {}
        for row in pruned:
            size, why = self.sizes.calibration(row.cell.method, row.cell.sparsity)
            if size is None:
                self.found.unplanned[row.cell.method] = why
            elif self.methods[row.cell.method].rehearses_shared:
                size += self.copies
            most = max(size or 0, self._sums([row]))
            if not self._refuse(row, self.weights + most, "pruning"):
                found[row.cell.label] = size or 0
        return found

    def _calibrate(
        self, pruned: Sequence[Row], calibrations: Mapping[str, int], networks: int
    ) -> None:
        """The rows of calibration; networks wait in main memory where they leave it no room."""
        shared = {
            row.cell.label: row
            for row in self._left(self.rows)
            if row.cell.label in calibrations
            and not self._is_own(row)
            and row.cell.method not in self.found.unplanned
        }
        summing = self._left(pruned)
        alone = max((self._sums([row]) for row in summing), default=0)
        largest = max([alone, *(calibrations[label] for label in shared)])
        fits = self.found.fits(self.weights + networks + largest)
        self.found.parked = self.accelerator and not fits
        resident = self.weights + (0 if self.found.parked else networks)
        by_size: dict[int, list[str]] = {}
        for label, row in shared.items():
            by_size.setdefault(calibrations[label], []).append(row.cell.method)
        for size, names in by_size.items():
            several = list(dict.fromkeys(names))
            name = several[0] if len(several) == 1 else f"{len(several)} methods"
            self._row("calibrate", name, resident, size)
        self._sum(summing, alone, resident)

    def _sum(self, rows: Sequence[Row], alone: int, resident: int) -> None:
        """The row of sums over the model's states: of all cells at once, if they fit.

        Args:
            rows: The cells.
            alone: The most that one of them holds.
            resident: Bytes that are there.
        """
        by_seed: dict[int, list[Row]] = {}
        for row in rows:
            by_seed.setdefault(row.cell.seed, []).append(row)
        together = max(map(self._sums, by_seed.values()), default=0)
        self.found.apart = not self.found.fits(resident + together)
        if together:
            n = sum(self._sums([row]) > 0 for row in rows)
            size = alone if self.found.apart else together
            self._row("prune", f"sums for {_several(n, 'model')}", resident, size)

    def _sums(self, rows: Sequence[Row]) -> int:
        """What sums over the dense model's states add, of some cells in one pass."""
        return self.sizes.sums([(row.cell.method, row.cell.sparsity) for row in rows])

    def _steps(self, trained: Sequence[Row]) -> dict[str, work.Step]:
        """What a step of each cell's networks adds beside copies of weights."""
        found: dict[str, work.Step] = {}
        through = {stage.objective for stage in self.config.training.stages()} == {"lm"}
        for row in trained:
            step = self.sizes.step(row.cell.method, row.n_removed or 0)
            if not step.networks:  # a method that does not tell
                step = replace(step, networks=(work.added(row, self.decoder),))
            waiting = 0 if self.accelerator else 4 * (sum(step.networks) - max(step.networks))
            alone = training_bytes(max(step.networks)) + waiting + step.added
            alone = self.parts.replaced(row, alone, 4 * sum(step.networks), through=through)
            if not self._refuse(row, self.weights + self.copies + alone, "training"):
                found[row.cell.label] = step
        return found

    def _train(self, steps: Mapping[Hashable, work.Step], total: int) -> None:
        """Waves of what is trained, once for all that recovers it: as many as there is room for."""
        if not steps:
            return
        once = list(steps.values())
        networks = [n for one in once for n in one.networks]
        step = max(one.added for one in once)
        waiting = 0 if self.accelerator else 4 * total  # on a CPU all of them are there
        each = training_bytes(1) - (0 if self.accelerator else 4)
        away = self.parts.away if self.found.in_parts else 0
        fixed = self.weights - away + self.copies + waiting
        largest = max(networks) * each
        at_once, self.found.waves = sum(networks) * each, 1
        if self.found.usable is not None and not self.found.fits(fixed + step + at_once):
            room = max(largest, self.found.usable - fixed - step)
            sizes = [size * each for size in networks]
            waves = [sum(sizes[place] for place in wave) for wave in packed(sizes, room)]
            self.found.students = room * training_bytes(1) // each
            self.found.waves, at_once = len(waves), max(waves)
        self._row("train", _several(len(networks), "network"), self.weights + waiting,
                  at_once + step + self.copies - away)  # fmt: skip

    def _tune(self, tuned: Sequence[Row], networks: Mapping[str, int]) -> None:
        """LoRA fine-tuning or distillation, a cell at a time, while the others' networks wait."""
        for row in tuned:
            self._refuse(row, self.weights + self._tuned(row, 0), _doing(row))
        tuned = self._left(tuned)
        kept = sum(networks.get(row.cell.label, 0) for row in tuned) * self.dtype.itemsize
        there, sizes = self.weights + kept, dict[int, list[str]]()
        for row in tuned:
            size = self._tuned(row, kept)
            if not self._refuse(row, there + size, _doing(row)):
                sizes.setdefault(size, []).append(row.cell.label)
        for size, labels in sizes.items():
            name = labels[0] if len(labels) == 1 else f"{len(labels)} models, one by one"
            self._row("fine-tune", name, there, size)
        if self.config.kd.own_answers and any(row.cell.recovery == "kd" for row in tuned):
            n_texts, length = work.own_texts(self.config)
            texts, limit = min(n_texts, ROWS[self.accelerator]), self._cache_limit(there)
            size = work.writing(self.decoder, self.dtype, texts, length, limit)
            self._row("write", "own answers", there, size)

    def _tuned(self, row: Row, kept: int) -> int:
        """What the recovery of a cell adds to what is there."""
        own, kd = self._own_bytes(row), self.config.kd.trainees if row.cell.recovery == "kd" else ""
        step, why = self.sizes.tuning(row.cell.recovery, parts=self.config.stream)
        bare, _ = self.sizes.tuning(row.cell.recovery, parts=True)
        if step is None or bare is None:
            self.found.unplanned[_doing(row)] = why
            step = bare = 0
        size = step + own
        if kd == "all":
            return size + self.parts.trained(row, self.weights + kept + own)
        if kd == "replacement":
            size += training_bytes(work.added(row, self.decoder))
        if own:  # beside the dense model, which stays
            return size
        return self.parts.recovered(row, size, bare + size - step, kept, taught=bool(kd))

    def _own(self, own: Sequence[Row], score: int, calibrations: Mapping[str, int]) -> None:
        """Methods that return a model of their own, one at a time, after all others are gone."""
        for row in own:
            size = max(calibrations[row.cell.label], self._own_bytes(row) + score)
            if not self._refuse(row, self.weights + size, "a model of its own"):
                self._row("prune", row.cell.label, self.weights, size)

    def _evaluate(self, kept: int) -> None:
        """Scoring of all that share layers, with as large a batch as fits."""
        given = self.config.batch_tokens
        tokens = given or (ACCELERATOR_TOKENS if self.accelerator else CPU_TOKENS)
        joint = [row for row in self._left(self.rows) if not self._is_own(row)]
        paths = len(joint) if self.accelerator else 1
        resident = self.weights + kept
        while True:
            states = (paths - 1) * tokens * self.decoder.hidden_size * self.dtype.itemsize
            size = self.sizes.scoring(tokens) + self.copies + states
            if self.found.fits(resident + size) or tokens <= _LEAST_TOKENS:
                break
            tokens //= 2
            self.found.batch_tokens = tokens
        self._row("evaluate", _several(len(joint), "model"), resident, size)
        if asked_of(self.config).prompts:
            self._generate(joint, resident, self.sizes.reading(tokens))
        if self.config.efficiency != "off" and not self.config.stream:
            self._measure(kept)

    def _measure(self, kept: int) -> None:
        """The speed of the dense model and another one, in batches that fit."""
        own = [
            (row.pruned or row.dense) * self.dtype.itemsize
            for row in self._left(self.rows)
            if self._is_own(row) or row.cell.recovery != "none"
        ]
        beside = {"models sharing layers": kept}
        if own:
            beside["models of their own"] = max(own)
        for kind, more in beside.items():
            resident = self.weights + more
            for batch in sorted(BATCHES, reverse=True):
                size = self.sizes.speed(batch)
                if self.found.fits(resident + size):
                    self._row("speed", f"{kind}, batch {batch}", resident, size)
                    break
                self.found.unmeasured.append(f"{kind} at a batch of {batch}")

    def _generate(self, joint: Sequence[Row], resident: int, reading: int) -> None:
        """Keys and values of what is generated side by side, of which there are as many as fit.

        Prompts are read before anything is written.
        """
        rows = ROWS[self.accelerator]
        prompts, new = work.generation(self.decoder, self.dtype, max(1, len(joint)), rows)
        if not self.accelerator or self.found.usable is not None:
            share = min(1.0, self._cache_limit(resident) / (prompts + new))
            prompts, new = share * prompts, share * new
        size = self.copies + round(prompts + max(new, reading))
        self._row("generate", _several(len(joint), "model"), resident, size)

    # Parts ---------------------------------------------------------------------------------------

    def _cache_limit(self, resident: int) -> int:
        """Most bytes of keys and values: on an accelerator half of what is free."""
        if self.accelerator and self.found.usable is not None:
            return max(0, self.found.usable - resident) // 2
        return CPU_CACHE

    def _untrained(self, pruned: Sequence[Row]) -> int:
        """Numbers in what stands in place of layers and is not trained, once for all recoveries."""
        left = (row for row in self._left(pruned) if not self._is_own(row))
        added = {
            row.cell.identity[:-1]: work.added(row, self.decoder)
            for row in left
            if not self.methods[row.cell.method].trains
        }
        return sum(added.values())

    def _is_own(self, row: Row) -> bool:
        return self.methods[row.cell.method].returns_model

    def _own_bytes(self, row: Row) -> int:
        """Bytes of the model that a cell's method returns, if it returns one."""
        return (row.pruned or row.dense) * self.dtype.itemsize if self._is_own(row) else 0

    def _left(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row.cell.label not in self.found.refused]

    def _refuse(self, row: Row, size: int, doing: str) -> bool:
        """Refuse a cell that needs more than there is; whether it is refused."""
        return self.found.refuses(row.cell.label, doing, size)

    def _row(self, stage: str, method: str, resident: int, added: int) -> None:
        self.found.rows.append(MemoryRow(stage, method, resident, added))


def _doing(row: Row) -> str:
    return "LoRA fine-tuning" if row.cell.recovery == "lora" else "distillation"


def _several(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
