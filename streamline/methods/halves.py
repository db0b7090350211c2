"""Attentions and MLPs as the units of pruning: which are gone, and what path and plan that makes.

Example:
    halves = Halves(decoder)
    halves.path([(3, "attention"), (7, "mlp")])           # for trials
    halves.pruned([(3, "attention"), (7, "mlp")], {})     # a plan with modules
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path
from streamline.method import Pruned
from streamline.methods.sublayers import Part, without
from streamline.plan import Plan, Step

PARTS: tuple[Part, ...] = ("attention", "mlp")
#: Half of a layer: the layer's index and which half.
Unit = tuple[int, Part]


class Halves:
    """A model's layers and what is left of each when a half or both are gone.

    Args:
        decoder: The dense model; it is not changed, and all halves share its weights.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.units: list[Unit] = [(i, part) for part in PARTS for i in range(decoder.n_layers)]
        self._left: dict[Unit, nn.Module] = {}

    def left(self, unit: Unit) -> nn.Module:
        """The layer without one half; the same module at each call."""
        if unit not in self._left:
            self._left[unit] = without(self.decoder, *unit)
        return self._left[unit]

    def steps(self, gone: Iterable[Unit]) -> list[tuple[Step, nn.Module]]:
        """The steps of the pruned model and the module that runs at each."""
        lost: dict[int, set[Part]] = {}
        for index, part in gone:
            lost.setdefault(index, set()).add(part)
        steps: list[tuple[Step, nn.Module]] = []
        for index, layer in enumerate(self.decoder.layers):
            parts = lost.get(index, set())
            if not parts:
                steps.append((Step(index), layer))
            elif len(parts) == 1:
                (part,) = parts
                steps.append((Step(index, f"no-{part}"), self.left((index, part))))
        return steps

    def path(self, gone: Iterable[Unit]) -> Path:
        """The pruned model as a path."""
        nodes = tuple(Node(module, step.layer) for step, module in self.steps(gone))
        return Path(self.decoder, nodes)

    def pruned(self, gone: Sequence[Unit], notes: dict[str, Any]) -> Pruned:
        """The pruned model as a plan with modules."""
        steps = self.steps(gone)
        plan = Plan(self.decoder.n_layers, tuple(step for step, _ in steps))
        modules = {i: module for i, (step, module) in enumerate(steps) if not step.dense}
        return Pruned(plan, modules, notes=notes)

    def n_removed(self, gone: Iterable[Unit]) -> int:
        """Parameters that are gone."""
        return self.decoder.n_parameters() - self.path(gone).n_parameters()

    def nearer(self, gone: Sequence[Unit], unit: Unit, target: float) -> bool:
        """Whether taking out one more unit comes nearer to a number of removed parameters."""
        now, then = self.n_removed(gone), self.n_removed([*gone, unit])
        return abs(then - target) < abs(now - target)
