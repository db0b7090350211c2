"""ShortGPT: remove the layers of least block influence, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class ShortGPT(DepthMethod):
    """Remove the layers of lowest Block Influence.

    It is ``BI = 1 - E[cos(x_i, x_{i+1})]`` over tokens, where ``x_i`` and ``x_{i+1}`` are a layer's
    input and output. Scores are measured once on the dense model and not again; the removed layers
    need not be neighbours. Of equal scores the deeper layer is removed first.

    Reference:
        ShortGPT, arXiv:2403.03853, equation 1.

    Differs from the paper:
        The run's calibration texts instead of PG19. The last layer's output is its own, before
        the final norm, which keeps it comparable with the others; reimplementations that read
        Hugging Face's ``output_hidden_states`` compare it after the norm.
    """

    name: ClassVar[str] = "shortgpt"
    paper: ClassVar[str] = "arXiv:2403.03853"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove the layers of lowest influence."""
        return Plan.drop(calibration.n_layers, self._order(calibration)[:n_remove])

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """The influence of every layer and the order of removal."""
        return {
            "block_influence": [float(value) for value in calibration.influence],
            "order": self._order(calibration),
        }

    @staticmethod
    def _order(calibration: Calibration) -> list[int]:
        influence = calibration.influence.tolist()
        return sorted(range(len(influence)), key=lambda i: (influence[i], -i))
