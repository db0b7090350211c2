"""UIDL: remove the run of layers across which the last token's state turns least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class UIDL(DepthMethod):
    """Remove the span with least angle between its ends.

    The span is ``[l, l + n)`` with the least mean angle between the states at ``l`` and ``l + n``.
    The angle ``arccos(cos(x_l, x_{l+n})) / pi`` is measured at the last token of each sequence and
    the angles, not the cosines, are averaged. One pass serves every ``n``.

    Reference:
        The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887, section 3.2.

    Differs from the paper:
        The run's calibration texts instead of C4. LoRA fine-tuning ("healing") is a stage of the
        run and not part of the method. The state after the last layer is the layer's own output.
        Common reimplementations read it after the final norm and cannot choose a run that starts at
        layer 0; here every start is a candidate.
    """

    name: ClassVar[str] = "uidl"
    paper: ClassVar[str] = "arXiv:2403.17887"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove the run of least angle; the first of equal ones."""
        start = int(torch.argmin(calibration.angle.diagonal(n_remove)))
        return Plan.drop(calibration.n_layers, range(start, start + n_remove))

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """The angle of every run of this length, by its first layer."""
        return {"angles": [float(value) for value in calibration.angle.diagonal(n_remove)]}
