"""Layers that are not the base model's own, and the registry that makes them from their specs.

This file stands alone (torch, transformers and the standard library only): with
:mod:`streamline.modeling.modeling_streamline` a copy of it lies in every checkpoint whose layers
are not all plain, so that ``trust_remote_code=True`` loads the folder without this package.

A new kind of layer is a function with :func:`builder` over it, here or in another file that stands
alone and is imported by ``modeling_streamline.py`` and named in its ``FILES``.

Example:
    layer = FFN(d=576, width=2304)
    build(layer.spec(), config, standard_layer)      # the same shape again, fresh weights

Notation: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

try:
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError:  # before version 4.52, whose models checkpoint layers themselves
    GradientCheckpointingLayer = nn.Module  # type: ignore[misc, assignment]

Spec = dict[str, Any]
#: Makes a layer from its spec, the model's config and a fresh standard layer of that position.
Builder = Callable[[Spec, PretrainedConfig, nn.Module], nn.Module]

BUILDERS: dict[str, Builder] = {}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


def builder(kind: str) -> Callable[[Builder], Builder]:
    """Register the builder of one kind of layer."""

    def register_builder(function: Builder) -> Builder:
        BUILDERS[kind] = function
        return function

    return register_builder


def build(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    """Make a layer, its weights still to be loaded.

    Args:
        spec: What :func:`spec_of` gave when it was saved.
        config: The model's config.
        layer: A fresh standard layer of the model, for kinds that are made from one.

    Returns:
        The module that runs in place of the layer.

    Raises:
        ValueError: If the kind is unknown.
    """
    kind = spec.get("kind")
    if kind not in BUILDERS:
        raise ValueError(f"unknown kind of layer {kind!r}; known: {', '.join(sorted(BUILDERS))}")
    return BUILDERS[kind](spec, config, layer)


def spec_of(module: nn.Module) -> Spec:
    """The spec from which :func:`build` makes a module of the same shape.

    A decoder layer that was changed carries its spec in the attribute ``streamline_spec``; one
    that was not is ``{"kind": "layer"}``.
    """
    if isinstance(module, LayerModule):
        return module.spec()
    return dict(module.__dict__.get("streamline_spec", {"kind": "layer"}))


class LayerModule(GradientCheckpointingLayer):
    """A network called like a decoder layer: the hidden states first, the rest ignored.

    Like a decoder layer it computes its activations again in the backward pass where a model's
    `gradient_checkpointing_enable` asks for it.

    Attributes:
        tuple_output: Whether the base model's layers return tuples, so that this one must too.
    """

    tuple_output: bool = False

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states [B, T, D] to hidden states [B, T, D]."""
        raise NotImplementedError

    def spec(self) -> Spec:
        """What :func:`build` needs to make a module of the same shape; JSON."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply :meth:`transform`; further arguments are those of a decoder layer."""
        output = self.transform(hidden_states, *args, **kwargs)
        return (output, None) if self.tuple_output else output


class FFN(LayerModule):
    """``fc2(activation(fc1(x)))``, without norm.

    Args:
        d: Hidden size, D.
        width: Hidden units.
        activation: One of :data:`ACTIVATIONS`.
        bias: Whether both projections have one.
        residual: Whether the input is added to the output.

    Reference:
        LLM-Streamline, arXiv:2403.19135: d-4d-d with ReLU (first version d-2d-d).
    """

    def __init__(
        self,
        d: int,
        width: int,
        activation: str = "relu",
        bias: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.fc1 = nn.Linear(d, width, bias=bias)
        self.fc2 = nn.Linear(width, d, bias=bias)
        self.activation = activation
        self.residual = residual

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Both projections and the activation between."""
        output: Tensor = self.fc2(ACTIVATIONS[self.activation](self.fc1(hidden_states)))
        return hidden_states + output if self.residual else output

    def spec(self) -> Spec:
        """Width, activation, bias and residual."""
        return {
            "kind": "ffn",
            "width": self.fc1.out_features,
            "activation": self.activation,
            "bias": self.fc1.bias is not None,
            "residual": self.residual,
        }


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)``, rounded as Llama's.

    Args:
        d: Hidden size, D.
        eps: Added to the mean.
    """

    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [B, T, D], in their dtype; the mean in float32."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)


class SwiGLU(LayerModule):
    """``down(silu(gate(x)) * up(x))``; with norm and residual an attention-free block of Llama.

    Args:
        d: Hidden size, D.
        intermediate: Hidden units.
        bias: Whether the projections have one.
        residual: Whether the input is added to the output.
        norm: eps of an RMS norm before the projections; None for no norm.
    """

    def __init__(
        self,
        d: int,
        intermediate: int,
        bias: bool = False,
        residual: bool = False,
        norm: float | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d, intermediate, bias=bias)
        self.up_proj = nn.Linear(d, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, d, bias=bias)
        self.residual = residual
        self.norm = None if norm is None else RMSNorm(d, norm)

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Norm, the gated projections and the addition."""
        x = hidden_states if self.norm is None else self.norm(hidden_states)
        gate = nn.functional.silu(self.gate_proj(x))
        output: Tensor = self.down_proj(gate * self.up_proj(x))
        return hidden_states + output if self.residual else output

    def spec(self) -> Spec:
        """Width, bias, residual and the norm's eps if there is one."""
        return {
            "kind": "swiglu",
            "intermediate": self.gate_proj.out_features,
            "bias": self.gate_proj.bias is not None,
            "residual": self.residual,
            **({} if self.norm is None else {"norm": self.norm.eps}),
        }


class LinearMap(LayerModule):
    """``W x + b``.

    Args:
        d: Hidden size, D.
        bias: Whether there is a b.
    """

    def __init__(self, d: int, bias: bool = True) -> None:
        super().__init__()
        self.map = nn.Linear(d, d, bias=bias)

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The map."""
        output: Tensor = self.map(hidden_states)
        return output

    def spec(self) -> Spec:
        """Whether there is a bias."""
        return {"kind": "linear", "bias": self.map.bias is not None}


class Stack(LayerModule):
    """Several modules one after the other, each called with the layer's own arguments.

    Args:
        modules: Decoder layers or modules called like one, in order.
    """

    #: Its parts do that, each for itself.
    gradient_checkpointing = property(lambda self: False, lambda self, value: None)

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Every part in turn."""
        for part in self.parts:
            output = part(hidden_states, *args, **kwargs)
            hidden_states = output[0] if isinstance(output, tuple) else output
        return hidden_states

    def sequence(self) -> list[nn.Module]:
        """The modules as they are applied, one entry per application."""
        return list(self.parts)

    def spec(self) -> Spec:
        """The specs of the parts."""
        return {"kind": "stack", "parts": [spec_of(part) for part in self.parts]}


class Repeated(Stack):
    """One module applied several times: the form with shared parameters.

    Args:
        module: A decoder layer or a module called like one.
        times: How often, at least 1.
    """

    def __init__(self, module: nn.Module, times: int) -> None:
        super().__init__([module])
        if times < 1:
            raise ValueError(f"a module is repeated at least once, got times={times}")
        self.times = times

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The module again and again."""
        for _ in range(self.times):
            hidden_states = super().transform(hidden_states, *args, **kwargs)
        return hidden_states

    def sequence(self) -> list[nn.Module]:
        """The same module, as often as it is applied."""
        return list(self.parts) * self.times

    def spec(self) -> Spec:
        """The module's spec and the number of times."""
        return {"kind": "repeated", "times": self.times, "module": spec_of(self.parts[0])}


@builder("layer")
def _layer(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return layer


@builder("shared")
def _shared(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    """The layer at position ``spec["of"]`` once more: same weights, its own index in the cache."""
    return build(spec["module"], config, layer)


@builder("ffn")
def _ffn(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return FFN(
        config.hidden_size, spec["width"], spec["activation"], spec["bias"], spec["residual"]
    )


@builder("swiglu")
def _swiglu(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return SwiGLU(
        config.hidden_size,
        spec["intermediate"],
        spec["bias"],
        spec["residual"],
        spec.get("norm"),
    )


@builder("linear")
def _linear(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return LinearMap(config.hidden_size, spec["bias"])


@builder("stack")
def _stack(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return Stack(build(part, config, copy.deepcopy(layer)) for part in spec["parts"])


@builder("repeated")
def _repeated(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return Repeated(build(spec["module"], config, layer), spec["times"])
