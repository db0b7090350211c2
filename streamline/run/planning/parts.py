"""What training holds through a model of whose layers each of several processes has a part.

It is told to the plan where that decides how a cell is trained: frozen layers are lent for as long
as a training lasts where one process does not hold them beside what it adds, and the run does it
for the cells that the plan names.

Example::

    parts = Parts(decoder, torch.bfloat16, world_size(), True, MemoryPlan("m", 32 * 2**30))
    parts.trained(row, 14 * 2**30)                      # bytes
"""

from __future__ import annotations

from collections.abc import Callable
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
        n_processes: How many there are.
        accelerator: Whether each has a device of its own.
        plan: Is told of cells that are trained in parts.
    """

    decoder: Decoder
    dtype: torch.dtype
    n_processes: int
    accelerator: bool
    plan: MemoryPlan

    @property
    def away(self) -> int:
        """Bytes of the dense model's weights that others hold while its layers are in parts."""
        return self._weights - self._frozen(None, taught=False)

    def trained(self, row: Row, there: int) -> int:
        """Bytes that training all weights of the model that a cell is adds to what is there."""
        n_parameters = row.pruned or row.dense
        known = self.plan.memory if self.accelerator else None
        if known is None or not divides(n_parameters, known - there, self.n_processes):
            return training_bytes(n_parameters)
        self.plan.divided = self.n_processes
        return divided_bytes(n_parameters, self._layers(row), self.n_processes)

    def adapted(
        self, row: Row, whole: int, unmerged: Callable[[], int], there: int, *, taught: bool
    ) -> int:
        """Bytes that a recovery adds to what is there that trains little through frozen layers.

        Args:
            row: The cell.
            whole: What it adds beside a model in memory.
            unmerged: Gives what training adds, without the weights that are merged at its end.
            there: Bytes of the dense model's weights and of what stays beside them.
            taught: Whether it is distillation, whose teacher is in parts too.
        """
        if not self._must(there + whole):
            return whole
        parts = self._frozen(row, taught=taught)
        merged = sum(self._layers(row)) * self.dtype.itemsize  # at most
        # Weights are there while parts are made of them, and again when all is merged.
        found = max(unmerged() + parts - self._weights, parts, merged)
        return self._if_it_fits(row, whole, found, there)

    def streamed(self, row: Row, step: int, weights: int, *, taught: bool) -> int:
        """The same where layers come one at a time, from the files into the parts.

        Args:
            row: The cell.
            step: What training adds.
            weights: Bytes of weights that streaming takes otherwise.
            taught: As for :meth:`adapted`.
        """
        self._note(row)
        return step + max(0, self._frozen(row, taught=taught) - weights)

    def replaced(self, row: Row, alone: int, networks: int, there: int) -> int:
        """Bytes that training a cell's replacements on the next token adds to what is there.

        Args:
            row: The cell.
            alone: What it adds beside a model in memory.
            networks: Of what is trained, when it is done.
            there: Bytes of the dense model's weights and of what stays beside them.
        """
        if not self._must(there + alone):
            return alone
        found = max(alone - self.away, networks + self._weights - self.away)
        return self._if_it_fits(row, alone, found, there)

    def _must(self, size: int) -> bool:
        """Whether several processes can and must hold parts of what one cannot."""
        return self.n_processes > 1 and self.accelerator and not self.plan.fits(size)

    def _if_it_fits(self, row: Row, whole: int, found: int, there: int) -> int:
        """What a cell adds: in parts if that is what fits."""
        if not self.plan.fits(there + found):
            return whole
        self._note(row)
        return found

    def _note(self, row: Row) -> None:
        """Tell the plan that a cell's frozen layers are in parts."""
        self.plan.divided = self.n_processes
        self.plan.in_parts.add(row.cell.label)

    @property
    def _weights(self) -> int:
        """Bytes of the dense model's weights."""
        return self.decoder.n_parameters() * self.dtype.itemsize

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
