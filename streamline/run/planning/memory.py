"""What a model's cells hold on the device, stage by stage, and what follows from it.

Weights are counted by shape and number format; what the stages add is rehearsed on tensors without
data (:mod:`streamline.run.planning.rehearsal`). From the memory that there is follow: how many
networks are trained at once, whether those that wait lie in main memory, the tokens of a batch, and
which cells cannot be had, each with the number that it needs.

Example::

    plan = plan_memory(own, rows, methods, decoder, memory=24 * 2**30, accelerator=True)
    plan.peak, plan.refused
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamline.api.guards import Watch
from streamline.distributed.team import world_size
from streamline.engine.decoder import Decoder
from streamline.errors import MethodError
from streamline.evaluation.generation.engine import CPU_CACHE, ROWS
from streamline.evaluation.scoring.token_budget import ACCELERATOR_TOKENS, CPU_TOKENS
from streamline.method import Method
from streamline.run.config import RunConfig
from streamline.run.planning import work
from streamline.run.planning.asked import asked_of
from streamline.run.planning.parts import Parts
from streamline.run.planning.plan import MARGIN, MemoryPlan, MemoryRow, Row
from streamline.run.planning.rehearsal import Rehearsal
from streamline.training.schedule import packed, training_bytes

__all__ = ["plan_memory"]

_LEAST_TOKENS = 512  # of a batch


def plan_memory(
    config: RunConfig,
    rows: Sequence[Row],
    methods: Mapping[str, Method],
    decoder: Decoder,
    *,
    memory: int | None,
    accelerator: bool,
) -> MemoryPlan:
    """Plan one model's cells.

    Args:
        config: The run, as the model has it.
        rows: Its cells as planned.
        methods: Each cell's method by its spec.
        decoder: The model; its weights lie on the meta device.
        memory: Bytes that may be held, or None if that is unknown.
        accelerator: Whether the device is one; a CPU runs smaller batches.
    """
    found = MemoryPlan(rows[0].cell.model, memory)
    possible = [row for row in rows if row.reason is None]
    return _Planner(config, possible, methods, decoder, accelerator, found).plan()


@dataclass
class _Planner:
    """Makes one :class:`MemoryPlan`; arguments as for :func:`plan_memory`."""

    config: RunConfig
    rows: list[Row]
    methods: Mapping[str, Method]
    decoder: Decoder
    accelerator: bool
    found: MemoryPlan

    def __post_init__(self) -> None:
        """What all stages look at."""
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        self.rehearsal = Rehearsal(self.decoder, self.dtype)
        self.watch = Watch(self.decoder)
        self.weights = work.resident(self.decoder, self.dtype, streamed=self.config.stream)
        laid_out = not (self.accelerator or self.config.stream)
        self.copies = work.laid_out(self.decoder, self.dtype, self.weights) if laid_out else 0
        self.parts = Parts(
            self.decoder, self.dtype, self.weights, self.found, world_size(), self.accelerator,
            self.config.stream,
        )  # fmt: skip

    def plan(self) -> MemoryPlan:
        """All stages; what a cell needs alone decides whether it is refused."""
        pruned = [row for row in self.rows if row.cell.sparsity]
        score = self._score_bytes(_LEAST_TOKENS)
        calibrations = self._calibrations(pruned)
        trained = [r for r in self._left(pruned) if self.methods[r.cell.method].trains]
        steps = self._steps(trained)
        networks = sum(sum(step.networks) for step in steps.values())
        self._calibrate(calibrations, networks * 4)
        self._train(steps)
        kept = networks * self.dtype.itemsize
        self._tune([r for r in self._left(self.rows) if r.cell.recovery != "none"], kept)
        self._own([r for r in self._left(pruned) if self._is_own(r)], kept, score, calibrations)
        self._evaluate(kept)
        return self.found

    # Stages --------------------------------------------------------------------------------------

    def _calibrations(self, pruned: Sequence[Row]) -> dict[str, int]:
        """What calibrating for each method adds; methods that it leaves no room are refused."""
        c = self.config.calibration
        tokens = self.rehearsal.tokens(c.n_samples, c.length)
        found: dict[str, int] = {}
        by_key: dict[str, int | None] = {}
        why: dict[str, str | None] = {}
        for row in pruned:
            method = self.methods[row.cell.method]
            shared = method.rehearses_shared
            key = "shared" if shared else f"{method!r} {row.cell.sparsity * method.returns_model}"
            if key not in by_key:
                by_key[key] = self._rehearsed(method, row.cell.sparsity, tokens, shared)
                why[key] = self.rehearsal.ended
            size = by_key[key]
            if size is None:
                self.found.unplanned[row.cell.method] = why.get(key) or "it holds nothing here"
            elif shared:
                size += self.copies
            if self._refuse(row, self.weights + (size or 0), "pruning"):
                continue
            found[row.cell.label] = size or 0
        return found

    def _rehearsed(
        self, method: Method, sparsity: float, tokens: Tensor, shared: bool
    ) -> int | None:
        """Bytes that a method's own code, or the shared calibration, holds; None if unknown."""
        try:
            with self.watch.over(f"{method.name}: rehearse"):
                return self.rehearsal.peak(
                    lambda few: method.rehearse(self.decoder, few, tokens, sparsity)
                )
        except MethodError as error:
            self.rehearsal.ended = str(error)
            return None
        finally:
            if not shared:
                self.rehearsal.renew()

    def _calibrate(self, calibrations: Mapping[str, int], networks: int) -> None:
        """The rows of calibration; networks wait in main memory where they leave it no room."""
        shared = {
            row.cell.label: row
            for row in self._left(self.rows)
            if row.cell.label in calibrations
            and not self._is_own(row)
            and row.cell.method not in self.found.unplanned
        }
        largest = max((calibrations[label] for label in shared), default=0)
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

    def _steps(self, trained: Sequence[Row]) -> dict[str, work.Step]:
        """What a step of each cell's networks adds beside copies of weights."""
        found: dict[str, work.Step] = {}
        known: dict[tuple[str, int], work.Step] = {}
        through = {stage.objective for stage in self.config.training.stages()} == {"lm"}
        for row in trained:
            place = (row.cell.method, row.n_removed or 0)
            if place not in known:
                known[place] = work.training_step(
                    self.rehearsal, self.methods[row.cell.method], place[1], self.config.training
                )
            step = known[place]
            if not step.networks:  # a method that does not tell
                step = replace(step, networks=(work.added(row, self.decoder),))
            waiting = 0 if self.accelerator else 4 * (sum(step.networks) - max(step.networks))
            alone = training_bytes(max(step.networks)) + waiting + step.added
            alone = self.parts.replaced(row, alone, 4 * sum(step.networks), through=through)
            if not self._refuse(row, self.weights + self.copies + alone, "training"):
                found[row.cell.label] = step
        return found

    def _train(self, steps: Mapping[str, work.Step]) -> None:
        """Waves of what is trained: as many networks as there is room for."""
        if not steps:
            return
        networks = [n for one in steps.values() for n in one.networks]
        total = sum(networks)
        step = max(one.added for one in steps.values())
        waiting = 0 if self.accelerator else 4 * total  # on a CPU all of them are there
        each = training_bytes(1) - (0 if self.accelerator else 4)
        away = self.parts.away if self.found.in_parts & {*steps} else 0
        fixed = self.weights - away + self.copies + waiting
        largest = max(networks) * each
        at_once, self.found.waves = total * each, 1
        if self.found.usable is not None and not self.found.fits(fixed + step + at_once):
            room = max(largest, self.found.usable - fixed - step)
            sizes = [size * each for size in networks]
            waves = [sum(sizes[place] for place in wave) for wave in packed(sizes, room)]
            self.found.students = room * training_bytes(1) // each
            self.found.waves, at_once = len(waves), max(waves)
        self._row("train", _several(len(networks), "network"), self.weights + waiting,
                  at_once + step + self.copies - away)  # fmt: skip

    def _tune(self, tuned: Sequence[Row], kept: int) -> None:
        """LoRA fine-tuning or distillation, a cell at a time."""
        sizes: dict[int, list[str]] = {}
        kinds = dict.fromkeys(row.cell.recovery for row in tuned)
        steps, bare = (
            {k: work.tuning(self.rehearsal, self.config, k, merged=merged) for k in kinds}
            for merged in (not self.config.stream, False)
        )
        for row in tuned:
            kind = row.cell.recovery
            size = self._tuned(row, steps[kind] or 0, bare[kind] or 0, kept)
            doing = "LoRA fine-tuning" if kind == "lora" else "distillation"
            if steps[kind] is None:
                self.found.unplanned[doing] = self.rehearsal.ended or "it holds nothing here"
            if not self._refuse(row, self.weights + kept + size, doing):
                sizes.setdefault(size, []).append(row.cell.label)
        for size, labels in sizes.items():
            name = labels[0] if len(labels) == 1 else f"{len(labels)} models, one by one"
            self._row("fine-tune", name, self.weights + kept, size)
        if "kd" in kinds and self.config.kd.own_answers:
            n_texts, length = work.own_texts(self.config)
            texts = min(n_texts, ROWS[self.accelerator])
            limit = self._cache_limit(self.weights + kept)
            size = work.writing(self.decoder, self.dtype, texts, length, limit)
            self._row("write", "own answers", self.weights + kept, size)

    def _own(
        self, own: Sequence[Row], kept: int, score: int, calibrations: Mapping[str, int]
    ) -> None:
        """Methods that return a model of their own, one at a time."""
        for row in own:
            size = max(calibrations[row.cell.label], self._own_bytes(row) + score)
            if not self._refuse(row, self.weights + kept + size, "a model of its own"):
                self._row("prune", row.cell.label, self.weights + kept, size)

    def _evaluate(self, kept: int) -> None:
        """Scoring of all that share layers, with as large a batch as fits."""
        given = self.config.batch_tokens
        tokens = given or (ACCELERATOR_TOKENS if self.accelerator else CPU_TOKENS)
        joint = [row for row in self._left(self.rows) if not self._is_own(row)]
        paths = len(joint) if self.accelerator else 1
        resident = self.weights + kept
        while True:
            states = (paths - 1) * tokens * self.decoder.hidden_size * self.dtype.itemsize
            size = self._score_bytes(tokens) + states
            if self.found.fits(resident + size) or tokens <= _LEAST_TOKENS:
                break
            tokens //= 2
            self.found.batch_tokens = tokens
        self._row("evaluate", _several(len(joint), "model"), resident, size)
        if asked_of(self.config).prompts:
            self._generate(joint, resident, self._score_bytes(tokens))
        if self.config.efficiency != "off":
            size = work.speed(self.decoder, self.dtype)
            self._row("speed", "two models in turn", resident, size)

    def _generate(self, joint: Sequence[Row], resident: int, reading: int) -> None:
        """Keys and values of what is generated side by side, of which there are as many as fit."""
        limit = self._cache_limit(resident)
        rows = ROWS[self.accelerator]
        size = work.generation(self.decoder, self.dtype, max(1, len(joint)), rows)
        if not self.accelerator or self.found.usable is not None:
            size = min(size, limit)
        self._row("generate", _several(len(joint), "model"), resident, size + reading)

    # Parts ---------------------------------------------------------------------------------------

    def _cache_limit(self, resident: int) -> int:
        """Most bytes of keys and values: on an accelerator half of what is free."""
        if self.accelerator and self.found.usable is not None:
            return max(0, self.found.usable - resident) // 2
        return CPU_CACHE

    def _score_bytes(self, tokens: int) -> int:
        # A CPU packs a batch into one long row, an accelerator into rows of 512 tokens.
        width = min(512, tokens) if self.accelerator else tokens
        rows = max(1, tokens // width)
        found = self.rehearsal.peak(work.scoring(rows, width, self.decoder), own=True)
        return (found or 0) + self.copies

    def _tuned(self, row: Row, step: int, bare: int, kept: int) -> int:
        """What the recovery of a cell adds, whose step, or that without a merge, adds something."""
        own, kd = self._own_bytes(row), self.config.kd.trainees if row.cell.recovery == "kd" else ""
        size = step + own
        if kd == "all":
            return size + self.parts.trained(row, self.weights + kept + own)
        if kd == "replacement":
            size += training_bytes(work.added(row, self.decoder))
        if own:  # beside the dense model, which stays
            return size
        return self.parts.recovered(row, size, bare + size - step, kept, taught=bool(kd))

    def _is_own(self, row: Row) -> bool:
        return self.methods[row.cell.method].returns_model

    def _own_bytes(self, row: Row) -> int:
        """Bytes of the model that a cell's method returns, if it returns one."""
        return (row.pruned or row.dense) * self.dtype.itemsize if self._is_own(row) else 0

    def _left(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row.cell.label not in self.found.refused]

    def _refuse(self, row: Row, size: int, doing: str) -> bool:
        """Refuse a cell that needs more than there is; whether it is refused."""
        if self.found.fits(size):
            return False
        assert self.found.memory is not None
        self.found.refused[row.cell.label] = (
            f"{doing} needs {work.gib(size)} of device memory and a margin of "
            f"{100 * MARGIN:.0f} %, and {work.gib(self.found.memory)} are planned; use --dtype "
            "bfloat16, --stream where the method allows it, or a larger device"
        )
        return True

    def _row(self, stage: str, method: str, resident: int, added: int) -> None:
        self.found.rows.append(MemoryRow(stage, method, resident, added))


def _several(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
