"""The null method: the model as it is, so that one code makes the dense row and all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, check_sparsity, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.method import Method, Pruned, Size
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Remove nothing, whatever the sparsity.

    Reference:
        None: the row that every other is compared with.
    """

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "control: the unpruned model"
    supports_streaming: ClassVar[bool] = True

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """The dense plan.

        Raises:
            ConfigError: If the sparsity is outside [0, 1).
        """
        check_sparsity(sparsity)
        return Pruned(Plan.dense(decoder.n_layers))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, which it does not look at."""
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """Everything remains."""
        return Size(decoder.n_parameters(), decoder.n_parameters(), 0)
