"""Linear maps with an adapter merged into a weight that comes and goes.

The weight of a streamed model is in memory while its layer's turn lasts, and an adapter cannot be
added to it once and for all. These add it whenever they run: the numbers are those of a map that it
was merged into. To files and counts they are the map itself.

Example::

    change(linear, down, up, scale=2.0)
    linear.merged(weight)                       # what a checkpoint holds
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = ["Changed", "change"]


class Changed(nn.Module):
    """What a changed map adds to its weight.

    Attributes:
        down: First factor of the change, [rank, in], float32.
        up: The second, [out, rank].
        scale: What their product is multiplied by.
        transposed: Whether the map keeps its weight as [in, out].
    """

    down: Tensor
    up: Tensor
    scale: float
    transposed: bool

    def merged(self, weight: Tensor) -> Tensor:
        """The map's weight as it is used, a new tensor.

        Args:
            weight: The weight that was adapted, on any device.
        """
        added = self.up @ self.down
        added = (added.T if self.transposed else added) * self.scale
        return (weight.float() + added.to(weight.device)).to(weight.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the map gives with its changed weight."""
        own = vars(self)  # is looked at before the parameters
        own["weight"] = self.merged(cast("Tensor", self._parameters["weight"]))
        try:
            return super().forward(*args, **kwargs)
        finally:
            del own["weight"]


@cache
def _changed(kind: type[nn.Module]) -> type[nn.Module]:
    """Maps of a kind that are changed."""
    return type(f"Changed{kind.__name__}", (Changed, kind), {"__module__": kind.__module__})


def change(module: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
    """Make a linear map one that adds a change to its weight, in place.

    Args:
        module: The map.
        down: As the attribute of :class:`Changed`.
        up: Likewise.
        scale: Likewise.
    """
    module.__class__ = _changed(cast("Any", type(module)))
    changed = cast("Changed", module)
    changed.down, changed.up = down.detach().clone(), up.detach().clone()
    changed.scale, changed.transposed = scale, isinstance(module, Conv1D)
