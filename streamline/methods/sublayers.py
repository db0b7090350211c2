"""Attentions and MLPs as the units of pruning: a layer without one, and models without many.

A layer that lost a sublayer is a copy that shares the remaining weights with the dense model's and
is called in the same way; norms that only served the missing sublayer are gone with it.

Example:
    remove_sublayer(decoder, 12, "attention")                # one layer without its attention
    sublayers = Sublayers(decoder)
    sublayers.path([(3, "attention"), (7, "mlp")])           # for trials
    sublayers.pruned([(3, "attention"), (7, "mlp")], {})     # a plan with modules
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import nn

from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.modeling.modeling_layers import Spec
from streamline.modeling.modeling_sublayers import remove_modules
from streamline.plan import Plan, Step

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")
#: A layer's index and one of its sublayers.
Unit = tuple[int, Sublayer]


class Sublayers:
    """A model's layers, and each without one or both of its sublayers.

    Args:
        decoder: The dense model; it is not changed, and all layers made here share its weights.

    Attributes:
        units: Every sublayer of the model: all attentions in order, then all MLPs.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.units: list[Unit] = [(i, kind) for kind in SUBLAYERS for i in range(decoder.n_layers)]
        self._made: dict[Unit, nn.Module] = {}

    def layer_without(self, unit: Unit) -> nn.Module:
        """The layer without one sublayer; the same module at each call."""
        if unit not in self._made:
            self._made[unit] = remove_sublayer(self.decoder, *unit)
        return self._made[unit]

    def steps(self, removed: Iterable[Unit]) -> list[tuple[Step, nn.Module]]:
        """The steps of the pruned model and the module that runs at each."""
        missing: dict[int, set[Sublayer]] = {}
        for index, sublayer in removed:
            missing.setdefault(index, set()).add(sublayer)
        steps: list[tuple[Step, nn.Module]] = []
        for index, layer in enumerate(self.decoder.layers):
            sublayers = missing.get(index, set())
            if not sublayers:
                steps.append((Step(index), layer))
            elif len(sublayers) == 1:
                (sublayer,) = sublayers
                steps.append((Step(index, f"no-{sublayer}"), self.layer_without((index, sublayer))))
        return steps

    def path(self, removed: Iterable[Unit]) -> Path:
        """The pruned model as a path."""
        nodes = tuple(Node(module, step.layer) for step, module in self.steps(removed))
        return Path(self.decoder, nodes)

    def pruned(self, removed: Sequence[Unit], notes: dict[str, Any]) -> Pruned:
        """The pruned model as a plan with modules."""
        steps = self.steps(removed)
        plan = Plan(self.decoder.n_layers, tuple(step for step, _ in steps))
        modules = {i: module for i, (step, module) in enumerate(steps) if not step.dense}
        return Pruned(plan, modules, notes=notes)

    def n_removed(self, removed: Iterable[Unit]) -> int:
        """How many parameters the pruned model has less than the dense one."""
        return self.decoder.n_parameters() - self.path(removed).n_parameters()

    def nearer(self, removed: Sequence[Unit], unit: Unit, target: float) -> bool:
        """Whether removing one more unit brings the removed parameters nearer to a target."""
        now, then = self.n_removed(removed), self.n_removed([*removed, unit])
        return abs(then - target) < abs(now - target)


def remove_sublayer(decoder: Decoder, index: int, sublayer: Sublayer) -> nn.Module:
    """A copy of a layer without its attention or its MLP.

    Args:
        decoder: The dense model; it is not changed.
        index: The layer.
        sublayer: ``"attention"`` or ``"mlp"``.

    Returns:
        A layer that shares the remaining weights with the dense model's.

    Raises:
        ConfigError: If ``sublayer`` is neither of the two.
    """
    shared = {id(decoder.config): decoder.config}
    layer = decoder.layers[index]
    return remove_modules(shared_copy(layer, shared), removal_spec(decoder, layer, sublayer))


def removal_spec(decoder: Decoder, layer: nn.Module, sublayer: Sublayer) -> Spec:
    """The spec for :func:`streamline.modeling.modeling_sublayers.remove_modules`.

    Raises:
        ConfigError: If ``sublayer`` is neither ``"attention"`` nor ``"mlp"``.
    """
    family = decoder.family
    norms = unused_norms(decoder, layer, sublayer)
    if sublayer == "attention":
        return {"kind": "no-attention", "attention": [family.attention], "identity": norms}
    if sublayer != "mlp":
        raise ConfigError(f'a layer can lose its "attention" or its "mlp", got {sublayer!r}')
    if family.mlp:
        return {"kind": "no-mlp", "zero": [family.mlp], "identity": norms}
    inner = [*family.mlp_in, *norms]
    return {"kind": "no-mlp", "zero": [family.mlp_out], "identity": inner}


def unused_norms(decoder: Decoder, layer: nn.Module, sublayer: Sublayer) -> list[str]:
    """The norms of a layer that serve one sublayer alone.

    There are none where the norms come after the addition (OPT-350m), where the residual is read
    after them, or where both sublayers read one norm.
    """
    family, config = decoder.family, decoder.config
    if not getattr(config, "do_layer_norm_before", True):
        return []
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        return []
    if hasattr(layer, "ln_attn") and hasattr(layer, "ln_mlp"):
        return ["ln_attn" if sublayer == "attention" else "ln_mlp"]
    if family.mlp_norm and not hasattr(layer, family.mlp_norm):
        return []
    first = sublayer == "attention"
    norms = [family.attention_norm if first else family.mlp_norm]
    if family.extra_norms:
        norms.append(family.extra_norms[0 if first else 1])
    return [norm for norm in norms if norm]
