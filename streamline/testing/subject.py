"""A method on a tiny model: what the conformance checks look at."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, PathTrie
from streamline.method import Method, Pruned
from streamline.testing.models import tiny_model

__all__ = ["SPARSITY", "Subject"]

SPARSITY = 0.25
"""The target of the checks: one or two of a tiny model's six layers."""


class Subject:
    """One method on one tiny model, with what many checks need computed once.

    Args:
        method: The method under test.
        family: A family of :data:`streamline.testing.models.FAMILIES`.
    """

    def __init__(self, method: Method, family: str) -> None:
        self.method = method
        self.family = family
        self.model = tiny_model(family)
        self.decoder = Decoder(self.model)
        generator = torch.Generator().manual_seed(7)
        self.batches = torch.randint(0, 256, (8, 32), generator=generator)
        self.ids = torch.randint(0, 256, (2, 12), generator=generator)

    @cached_property
    def calibration(self) -> Calibration:
        """What the method measures on the model."""
        return self.method.calibrate(self.decoder, self.batches)

    @cached_property
    def pruned(self) -> Pruned:
        """The model pruned to :data:`SPARSITY` with seed 0."""
        return self.prune(SPARSITY)

    def prune(self, sparsity: float, seed: int = 0) -> Pruned:
        """Prune afresh from the shared calibration."""
        given = self.given(self.calibration)
        return self.method.prune(self.decoder, given, sparsity, self.batches, seed)

    def given(self, calibration: Calibration) -> Calibration:
        """What pruning is given of a calibration: one by domains has a second text beside."""
        if not self.method.by_domain:
            return calibration
        other = self.method.calibrate(self.decoder, self.batches.flip(1))
        return calibration.beside({"other": other})

    def logits(self, path: Path) -> Tensor:
        """Logits of a path on fixed tokens, [2, 12, V]."""
        found: list[Tensor] = []
        with torch.no_grad():
            entry = path.decoder.enter(self.ids)
            PathTrie([path]).forward(
                entry, lambda _, hidden: found.append(path.decoder.leave(hidden))
            )
        return found[0]
