"""A control: remove the first layers, where damage is expected to be greatest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FirstLayers(DepthMethod):
    """Remove the first layers. It looks at no data.

    Reference:
        None: a control.
    """

    name: ClassVar[str] = "first-layers"
    paper: ClassVar[str] = "control: the first layers"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove ``[0, n_remove)``."""
        return Plan.drop(calibration.n_layers, range(n_remove))
