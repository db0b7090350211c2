"""What training holds through a model of whose layers each of several processes has a part.

It is told to the plan where that decides how a cell is trained: frozen layers are lent for as long
as a training lasts where one process does not hold them beside what it adds, and the run does it
for the cells that the plan names. Those of a model that is read layer by layer always are in parts.

Example::

    parts = Parts(decoder, torch.bfloat16, 14 * 2**30, MemoryPlan("m", 32 * 2**30), 8)
    parts.trained(row, 14 * 2**30)                      # bytes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from streamline.engine.decoder import Decoder
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.training.schedule import (
    divided_bytes,
    divided_numbers,
    divides,
    training_bytes,
)

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """Counts for one model.

    Attributes:
        decoder: The dense model; its weights may lie on the meta device.
        dtype: Of the weights.
        weights: Bytes of them that are there at other times.
        plan: Is told of cells that are trained in parts.
        n_processes: How many there are.
        accelerator: Whether each has a device of its own.
        streamed: Whether layers are read one at a time.
    """

    decoder: Decoder
    dtype: torch.dtype
    weights: int
    plan: MemoryPlan
    n_processes: int
    accelerator: bool = True
    streamed: bool = False

    @property
    def away(self) -> int:
        """Bytes of weights that are not there while layers are in parts; negative for more."""
        return self.weights - self._frozen(None, taught=False)

    def trained(self, row: Row, there: int) -> int:
        """Bytes that training all weights of the model that a cell is adds to what is there."""
        n_parameters = row.pruned or row.dense
        known = self.plan.memory if self.accelerator else None
        if known is None or not divides(n_parameters, known - there, self.n_processes):
            return training_bytes(n_parameters)
        self.plan.divided = self.n_processes
        return divided_bytes(n_parameters, self._layers(row), self.n_processes)

    def recovered(self, row: Row, whole: int, unmerged: int, kept: int, *, taught: bool) -> int:
        """Bytes that a recovery adds to what is there that trains little through frozen layers.

        Args:
            row: The cell.
            whole: What it adds beside a model in memory.
            unmerged: What training adds, without the weights that are merged at its end.
            kept: Bytes of what stays beside the dense model.
            taught: Whether it is distillation, whose teacher is in parts too.
        """
        if not self._must(self.weights + kept + whole):
            return whole
        parts = self._frozen(row, taught=taught)
        merged = 0 if self.streamed else sum(self._layers(row)) * self.dtype.itemsize  # at most
        found = max(unmerged + parts - self.weights, parts, merged)
        return self._in_parts(row, whole, found, kept)

    def replaced(self, row: Row, alone: int, networks: int, *, through: bool) -> int:
        """Bytes that training a cell's replacements adds to the weights.

        Args:
            row: The cell.
            alone: What it adds beside a model in memory.
            networks: Of what has been trained.
            through: Whether gradients pass through the layers behind them.
        """
        if not self._must(self.weights + alone) or not (through or self.streamed):
            return alone
        parts = self._frozen(None, taught=False)
        return self._in_parts(row, alone, max(alone - self.away, networks + parts), 0)

    def _must(self, size: int) -> bool:
        """Whether processes hold parts: where one cannot hold all, and they can."""
        able = self.n_processes > 1 and self.accelerator
        return self.streamed or (able and not self.plan.fits(size))

    def _in_parts(self, row: Row, whole: int, found: int, kept: int) -> int:
        """What a cell adds: in parts, where that fits or nothing else can be.

        Args:
            row: The cell.
            whole: Bytes added with whole weights.
            found: With parts of them; before and after training both are there.
            kept: Bytes of what stays beside the dense model.
        """
        if not self.streamed and not self.plan.fits(self.weights + kept + found):
            return whole
        self.plan.divided = self.n_processes
        self.plan.in_parts.add(row.cell.label)
        return found

    def _frozen(self, row: Row | None, *, taught: bool) -> int:
        """Bytes of frozen weights: parts of layers, and what is not in the layers.

        Args:
            row: The cell, of whose layers there are parts; None for all.
            taught: Whether there are parts of all layers beside.
        """
        every = self._layers(None)
        rest = self.decoder.n_parameters() - sum(every)
        models = [self._layers(row), every if taught else []]
        return divided_numbers(rest, models, self.n_processes) * self.dtype.itemsize

    def _layers(self, row: Row | None) -> list[int]:
        """Numbers in the layers that a cell keeps."""
        gone = 0 if row is None else row.n_removed or 0
        return [self.decoder.layer_parameters(i) for i in range(self.decoder.n_layers - gone)]
