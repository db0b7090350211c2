"""A control: remove the layers that somebody else's list names.

A published choice of layers, or that of another run's record, is run as it stands, so that it is
measured on the same questions as everything else.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, check_sparsity, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Method, Pruned, Size
from streamline.methods.sublayers import SUBLAYERS, Sublayers, Unit
from streamline.plan import Plan

_ITEM = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?(\.(?P<sublayer>attention|mlp))?")
_FORM = (
    "a layer (24), layers with both ends (21-29), or one sublayer of them (24.attention, 3-5.mlp)"
)


@dataclass(frozen=True, kw_only=True)
class GivenLayers(Method):
    """Remove the layers of a list, whatever the data say.

    The list decides how much is removed; the target sparsity does not (but at 0 nothing is
    removed), and the record holds both. Layers are counted from 0: ``given-layers+remove=21-29``,
    ``remove=[24,25,27]``, ``remove=24.attention``. ``--plan`` reads the list from a cell, a
    checkpoint or a file. It is no part of ``all``.

    Attributes:
        remove: What to remove: one item or a list of items, each a layer, layers written as
            ``first-last`` with both ends, or either with ``.attention`` or ``.mlp`` for that
            sublayer alone.

    Reference:
        None: a control.
    """

    name: ClassVar[str] = "given-layers"
    paper: ClassVar[str] = "control: the layers of a given list"
    supports_streaming: ClassVar[bool] = True
    in_all: ClassVar[bool] = False

    remove: int | str | tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every item can be read and that none is named twice.

        Raises:
            ConfigError: If not.
        """
        super().__post_init__()
        units = self.units
        twice = sorted({unit for unit in units if units.count(unit) > 1})
        if twice:
            index, sublayer = twice[0]
            raise ConfigError(f"remove names the {sublayer} of layer {index} twice")

    @property
    def units(self) -> list[Unit]:
        """Every attention and MLP to remove."""
        items = self.remove if isinstance(self.remove, tuple) else (self.remove,)
        found: list[Unit] = []
        for item in items:
            match = None if isinstance(item, bool) else _ITEM.fullmatch(str(item).strip())
            if match is None:
                raise ConfigError(f"{item!r} in remove names no layers; write {_FORM}")
            first = int(match["first"])
            last = int(match["last"] or first)
            if last < first:
                raise ConfigError(f"{item!r} in remove ends before it starts; write {_FORM}")
            wanted = [kind for kind in SUBLAYERS if match["sublayer"] in (None, kind)]
            found += [(index, kind) for index in range(first, last + 1) for kind in wanted]
        return found

    def unsupported(self, decoder: Decoder) -> str | None:
        """An empty list, one beyond the model, or one that leaves no layer."""
        if not self.units:
            return f"{self.name} needs its list, as in {self.name}+remove=21-29"
        highest = max(index for index, _ in self.units)
        if highest >= decoder.n_layers:
            return (
                f"{self.name} is to remove layer {highest}, and the layers of {decoder.name} are "
                f"0 to {decoder.n_layers - 1}"
            )
        if len(self.units) == len(SUBLAYERS) * decoder.n_layers:
            return f"{self.name} is to remove every layer of {decoder.name}"
        return super().unsupported(decoder)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Remove what the list names."""
        if check_sparsity(sparsity) == 0.0:
            return Pruned(Plan.dense(decoder.n_layers))
        return Sublayers(decoder).pruned(self.units, {})

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, which it does not look at."""
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count of what the list leaves."""
        dense = decoder.n_parameters()
        if check_sparsity(sparsity) == 0.0:
            return Size(dense, dense, 0)
        units = set(self.units)
        whole = sum({(i, kind) for kind in SUBLAYERS} <= units for i in range(decoder.n_layers))
        left = Sublayers(decoder).path(units).n_parameters()
        return Size(dense, left, whole)
