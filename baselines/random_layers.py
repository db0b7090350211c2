"""A control: layers drawn at random. Any rule worth its calibration must beat it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.fields import Natural
from streamline.method import DepthMethod, Pruned
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RandomLayers(DepthMethod):
    """Remove layers drawn uniformly, by the run's seed.

    One seed is one order of all layers, so layers removed at a low sparsity are removed at a higher
    one too.

    Attributes:
        draw: Further number mixed into the seed, for more than one draw within a run.

    Reference:
        None: a control.
    """

    name: ClassVar[str] = "random-layers"
    paper: ClassVar[str] = "control: layers at random"
    supports_streaming: ClassVar[bool] = True

    draw: Natural = 0

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """The draw of seed 0."""
        return self._plan(calibration.n_layers, n_remove, 0)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Remove the first layers of the seed's order."""
        n_remove = layers_to_remove(decoder, sparsity)
        return Pruned(self._plan(decoder.n_layers, n_remove, seed))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, which it does not look at."""
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def _plan(self, n_layers: int, n_remove: int, seed: int) -> Plan:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.draw)
        order = torch.randperm(n_layers, generator=generator).tolist()
        return Plan.drop(n_layers, order[:n_remove]) if n_remove else Plan.dense(n_layers)
