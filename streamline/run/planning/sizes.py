"""What the stages of one model's cells add in memory, each of them rehearsed once.

None of it goes by how much memory there is, or by whether layers are read one at a time, so one
object serves every plan of a model.

Example::

    sizes = Sizes(own, methods, decoder, accelerator=True)
    sizes.scoring(2_048)                # bytes of a batch of so many tokens
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from streamline.api.guards import Watch
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.errors import MethodError
from streamline.evaluation.efficiency.measure import Sizes as Measured
from streamline.method import Method
from streamline.methods.teacher_fits import BATCH_TOKENS, Fit, rehearse_fits
from streamline.run.config import RunConfig
from streamline.run.planning import work
from streamline.run.planning.rehearsal import Rehearsal

__all__ = ["Rehearsed", "Sizes"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Rehearsed(NamedTuple):
    """What some work holds.

    Attributes:
        size: Bytes at its peak; None if that is unknown.
        why: Why it is unknown, where it is.
    """

    size: int | None
    why: str


class Sizes:
    """Counts what stages add, and keeps it.

    Args:
        config: The run, as the model has it; its ``memory`` and ``stream`` do not matter.
        methods: Each cell's method by its spec.
        decoder: The model; its weights lie on the meta device.
        accelerator: Whether the device is one; a CPU runs smaller batches.
    """

    def __init__(
        self,
        config: RunConfig,
        methods: Mapping[str, Method],
        decoder: Decoder,
        *,
        accelerator: bool,
    ) -> None:
        self.config, self.methods, self.decoder = config, methods, decoder
        self.accelerator = accelerator
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._rehearsal = Rehearsal(decoder, self.dtype)
        self._watch = Watch(decoder)
        self._known: dict[Hashable, Any] = {}

    def calibration(self, spec: str, sparsity: float) -> Rehearsed:
        """What calibrating for a method, or all of a method's own code, adds.

        Args:
            spec: The method's.
            sparsity: What it is to remove.
        """
        method = self.methods[spec]
        shared = method.rehearses_shared
        own = (repr(method), sparsity * method.returns_model)

        def rehearsed() -> Rehearsed:
            c = self.config.calibration
            tokens = self._rehearsal.tokens(c.n_samples, c.length)
            try:
                with self._watch.over(f"{method.name}: rehearse"):
                    return self._told(
                        self._rehearsal.peak(
                            lambda few: method.rehearse(self.decoder, few, tokens, sparsity)
                        )
                    )
            except MethodError as error:
                return Rehearsed(None, str(error))
            finally:
                if not shared:
                    self._rehearsal.renew()

        return self._once("shared" if shared else own, rehearsed)

    def sums(self, cells: Collection[tuple[str, float]]) -> int:
        """Bytes that sums over the dense model's states add, of some cells in one pass.

        Args:
            cells: The spec of a method and what it is to remove, of each.
        """

        def rehearsed() -> int:
            wanted = [fit for cell in cells for fit in self._fits(*cell)]
            if not wanted:
                return 0
            c = self.config.calibration
            rows = max(1, BATCH_TOKENS // c.length) if self.accelerator else c.n_samples
            tokens = self._rehearsal.tokens(min(rows, c.n_samples), c.length)
            return (
                self._rehearsal.peak(lambda few: rehearse_fits(few, wanted, tokens), own=True) or 0
            )

        return self._once(("sums", frozenset(cells)), rehearsed)

    def _fits(self, spec: str, sparsity: float) -> Sequence[Fit]:
        """What a cell will sum; nothing of one that does not tell or fails."""
        method, depths = self.methods[spec], self.decoder.n_layers + 1
        alike = torch.zeros(depths, depths, dtype=torch.float64)
        try:
            with self._watch.over(f"{method.name}: fits"):
                return method.fits(self.decoder, Calibration(alike, alike, 1, 1), sparsity)
        except Exception:  # of this method's code; the cell will fail by itself with that
            log.debug("fits of %s failed", method.name, exc_info=True)
            return ()

    def step(self, spec: str, n_removed: int) -> work.Step:
        """What a step of training a method's networks adds beside copies of weights.

        Args:
            spec: The method's.
            n_removed: Layers that it replaces.
        """
        method, recipe = self.methods[spec], self.config.training
        return self._once(
            ("step", spec, n_removed),
            lambda: work.training_step(self._rehearsal, method, n_removed, recipe),
        )

    def tuning(self, recovery: str, *, parts: bool) -> Rehearsed:
        """What fine-tuning or distillation of a model adds.

        Args:
            recovery: Its kind.
            parts: Whether layers are in parts, so that each runs once more and nothing is merged.
        """

        def rehearsed() -> Rehearsed:
            rehearsal, config = self._rehearsal, self.config
            return self._told(work.tuning(rehearsal, config, recovery, parts=parts))

        return self._once(("tuning", recovery, parts), rehearsed)

    def scoring(self, tokens: int) -> int:
        """Bytes that scoring a batch adds.

        Args:
            tokens: Of the batch: on a CPU one long row, on an accelerator rows of 512.
        """
        width = min(512, tokens) if self.accelerator else tokens
        batch = work.scoring(max(1, tokens // width), width, self.decoder)
        return self._once(("scoring", tokens), lambda: self._rehearsal.peak(batch, own=True) or 0)

    def reading(self, tokens: int) -> int:
        """Bytes that reading a batch of prompts adds, their keys and values apart.

        Args:
            tokens: Of the batch, in rows as for :meth:`scoring`.
        """
        width = min(512, tokens)
        read = work.reading(max(1, tokens // width), width)
        return self._once(("reading", tokens), lambda: self._rehearsal.peak(read, own=True) or 0)

    def speed(self, batch: int) -> int:
        """Bytes that measuring the speed of two models in turn adds: their caches, and one pass.

        Args:
            batch: Texts at once.
        """
        measured = Measured.of(self.decoder, self.config.efficiency, cuda=self.accelerator)
        fill = work.filling(batch, measured, accelerator=self.accelerator)
        later = measured.room if self.accelerator else 0
        each = batch * work.cached(self.decoder, self.dtype)
        grown = 2 * each * (measured.length + measured.steps)

        def beside() -> int:
            filled = self._rehearsal.peak(fill) or 0
            return max(grown, filled + each * (measured.length + later))

        return self._once(("speed", batch), beside)

    def _told(self, size: int | None) -> Rehearsed:
        return Rehearsed(size, self._rehearsal.ended or "it holds nothing here")

    def _once(self, key: Hashable, count: Callable[[], _T]) -> _T:
        if key not in self._known:
            self._known[key] = count()
        found: _T = self._known[key]
        return found
