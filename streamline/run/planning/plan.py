"""A plan as values: the cells, what the stages of one model hold, and what follows from it.

Example::

    plan.peak, plan.refused, plan.decisions()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamline.run.cell import Cell
from streamline.training.student import Student

__all__ = ["MARGIN", "MemoryPlan", "MemoryRow", "Refusal", "Row", "gib"]

#: Share of the memory that a plan leaves free, for what kernels take and for fragments.
MARGIN = 0.05


@dataclass(frozen=True)
class Row:
    """One cell as planned.

    Attributes:
        cell: The cell.
        n_removed: Layers removed or replaced; None if the method keeps all or only a run shows it.
        dense: Parameters of the dense model.
        pruned: Parameters that would remain; None if only a run can show it.
        reason: Why the cell would be skipped or fail, or None.
    """

    cell: Cell
    n_removed: int | None
    dense: int
    pruned: int | None
    reason: str | None = None

    @property
    def removed_fraction(self) -> float | None:
        """Share of the dense model's parameters that would be gone."""
        return None if self.pruned is None else 1.0 - self.pruned / self.dense

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return self.cell.record(
            removed_layers=self.n_removed,
            dense=self.dense,
            pruned=self.pruned,
            removed_fraction=self.removed_fraction,
            reason=self.reason,
        )


@dataclass(frozen=True)
class MemoryRow:
    """What one stage holds at its peak.

    Attributes:
        stage: calibrate, prune, train, fine-tune, evaluate.
        method: Whose it is; empty where it is shared.
        resident: Bytes that are there before and stay.
        added: Bytes that the stage adds at its peak.
    """

    stage: str
    method: str
    resident: int
    added: int

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return self.resident + self.added


@dataclass(frozen=True)
class Refusal:
    """Why memory does not hold a cell, and what does.

    Attributes:
        work: What needs most, in words.
        size: Bytes that it needs.
        memory: Bytes that are planned.
        device: GiB of a device that holds it, its margin too; 0 where that is not known yet.
        streamed: Whether it fits with layers read one at a time.
        devices: How many of this machine's hold it with the layers spread over them; 0 where that
            does not help.
        processes: How many, with such a device each, hold it together; 0 where that does not help.
    """

    work: str
    size: int
    memory: int
    device: float = 0.0
    streamed: bool = False
    devices: int = 0
    processes: int = 0

    def __str__(self) -> str:
        """As a record has it."""
        found = (
            f"{self.work} needs {gib(self.size)} of device memory and a margin of "
            f"{100 * MARGIN:.0f} %, and {gib(self.memory)} are planned"
        )
        ways = ["--stream makes it fit"] if self.streamed else []
        if self.devices:
            ways.append(
                f"--device-map auto makes it fit on the {self.devices} devices that there are"
            )
        if self.processes:
            ways.append(f"{self.processes} processes on as many such devices share it (torchrun)")
        if self.device:
            size = f"{self.device:.1f}"
            ways.append(f"a device of {size} GiB does (--memory {size}GiB plans for one)")
        return ": ".join([found, *filter(None, [", and ".join(ways)])])


@dataclass
class MemoryPlan:
    """What one model's cells will hold.

    Attributes:
        model: The model.
        rows: The stages, in their order.
        memory: Bytes that may be held, or None if that is unknown.
        refused: Label of each cell that cannot be had, and why.
        students: Bytes that the networks of a wave may hold, or None for all at once.
        waves: How often the teacher is run through its text.
        apart: Whether each cell sums by itself over the model's states.
        parked: Whether networks that wait for their training lie in main memory.
        batch_tokens: Most tokens of a batch; None for the device's default.
        unmeasured: Whose speed memory leaves no room to measure, and at which batch.
        divided: Processes that each hold a part of the weights of a model that is recovered; 1
            where each holds all of them.
        in_parts: Labels of the cells whose frozen layers are in parts while they are trained.
        unplanned: What holds more than is planned, by name, and why that is not known.
        spread: Where the layers lie, if they are spread over devices, in words.
        needs: By label, the most bytes that a cell needs by itself, and for what.
    """

    model: str
    memory: int | None
    rows: list[MemoryRow] = field(default_factory=list)
    refused: dict[str, Refusal] = field(default_factory=dict)
    students: int | None = None
    waves: int = 1
    apart: bool = False
    parked: bool = False
    batch_tokens: int | None = None
    unmeasured: list[str] = field(default_factory=list)
    divided: int = 1
    in_parts: set[str] = field(default_factory=set)
    unplanned: dict[str, str] = field(default_factory=dict)
    spread: str | None = None
    needs: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The largest of all stages."""
        return max((row.peak for row in self.rows), default=0)

    @property
    def usable(self) -> int | None:
        """The memory without its margin."""
        return None if self.memory is None else int(self.memory * (1 - MARGIN))

    def decisions(self) -> list[str]:
        """What follows from it for the run, in words."""
        found = []
        if self.waves > 1:
            found.append(f"networks are trained in {self.waves} waves, each with a teacher's pass")
        if self.apart:
            found.append("each method sums over the model's states by itself")
        if self.parked:
            found.append("networks wait for their training in main memory")
        if self.batch_tokens is not None:
            found.append(f"a batch has at most {self.batch_tokens} tokens")
        if self.unmeasured:
            found.append(f"no room to measure the speed of {', '.join(self.unmeasured)}")
        if self.divided > 1:
            found.append(
                f"each of {self.divided} processes holds a part of the weights of a model that is "
                "trained or recovered as a whole"
            )
        if self.spread is not None:
            found.append(self.spread)
        found += [f"not planned: {name}: {why}" for name, why in self.unplanned.items()]
        return found

    def park(self, students: Sequence[Student]) -> None:
        """Put networks that are to be trained into main memory, if they have to wait there."""
        for student in students if self.parked else ():
            student.module.to("cpu")

    def refuses(self, label: str, work: str, size: int) -> bool:
        """Note what a cell needs, and refuse it if that is more than there is.

        Args:
            label: The cell's.
            work: What needs it, in words.
            size: Bytes that it needs.

        Returns:
            Whether it is refused.
        """
        self.needs[label] = max((size, work), self.needs.get(label, (0, "")))
        if self.memory is None or self.fits(size):
            return False
        self.refused[label] = Refusal(work, size, self.memory)
        return True

    def fits(self, size: int) -> bool:
        """Whether something of a size may be held."""
        return self.usable is None or size <= self.usable


def gib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.1f} GiB"
