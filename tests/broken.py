"""A method that fails while it chooses, wherever one is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Broken(DepthMethod):
    """Fails while it chooses."""

    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "an error"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        raise ZeroDivisionError("no scores")
