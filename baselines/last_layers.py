"""UIDL's simple form: remove the deepest layers, but keep the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class LastLayers(DepthMethod):
    """Remove the deepest layers, but keep the last.

    Only where every layer is to be removed, the last one is too. It looks at no data.

    Reference:
        The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887, section 4.4
        ("simpler pruning strategy").
    """

    name: ClassVar[str] = "last-layers"
    paper: ClassVar[str] = "arXiv:2403.17887"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove ``[L - 1 - n_remove, L - 1)``."""
        last = calibration.n_layers - 1
        order = [*range(last - 1, -1, -1), last]
        return Plan.drop(calibration.n_layers, order[:n_remove])
