"""Decoder layers made narrower: fewer heads and channels, or a residual stream of less width.

Like :mod:`streamline.modeling.modeling_layers`, this file stands alone and is copied into
checkpoints. A *resized* layer is the family's own layer with smaller projections. A *sliced* layer
holds the family's own attention and MLP in a block of its own, whose residual passes through a
matrix at both additions; a model of such layers also has another embedding, final norm and head,
its *shell*.

Example:
    resize(layer, {"kind": "resized", "linear": {"mlp.up_proj": [48, 32], ...}})
    build_shell(model, {"embeddings": {"model.embed_tokens": 24}, "norm": ..., "head": ...})

Notation: B batch, T tokens, D hidden size of the dense model, d of the sliced one.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .modeling_layers import LayerModule, Spec, builder


class ConfigView:
    """A config in which one module sees other values of some fields.

    Args:
        config: The model's config; everything else is read from it.
        fields: The fields and their values for this module.
    """

    def __init__(self, config: Any, fields: dict[str, Any]) -> None:
        self.__dict__.update(_config=config, _fields=dict(fields))

    def __getattr__(self, name: str) -> Any:
        """The module's own value, or the model's."""
        if name.startswith("__") or "_config" not in self.__dict__:
            raise AttributeError(name)
        fields = self.__dict__["_fields"]
        return fields[name] if name in fields else getattr(self.__dict__["_config"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigView:
        """A view on the copy of the config."""
        return ConfigView(copy.deepcopy(self.__dict__["_config"], memo), self.__dict__["_fields"])


class UnitNorm(nn.Module):
    """``x / sqrt(sum(x^2) / width + eps)``: a norm without scale.

    Args:
        width: What the sum of squares is divided by: the dense model's D, whatever remains of it.
        eps: As of the model's own norm.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [..., d], in their dtype; computed in float32."""
        x = hidden_states.float()
        scale = torch.rsqrt(x.square().sum(-1, keepdim=True) / self.width + self.eps)
        return (x * scale).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Width and eps."""
        return f"width={self.width}, eps={self.eps}"


def empty_linear(like: nn.Module, n_out: int, n_in: int, bias: bool | None = None) -> nn.Module:
    """A projection of another shape, of the same class, dtype and device; its weights are unset.

    Args:
        like: An ``nn.Linear``, or GPT-2's ``Conv1D``, which keeps its weight transposed.
        n_out: Outputs.
        n_in: Inputs.
        bias: Whether it has a bias; None for as ``like`` has it.
    """
    module: Any = copy.copy(like)
    module._parameters = dict(like._parameters)
    weight: Any = like.weight
    has_bias = like.bias is not None if bias is None else bias
    shape = (n_out, n_in) if isinstance(like, nn.Linear) else (n_in, n_out)
    module.weight = nn.Parameter(weight.new_empty(shape), requires_grad=weight.requires_grad)
    module.bias = None
    if has_bias:
        module.bias = nn.Parameter(weight.new_empty(n_out), requires_grad=weight.requires_grad)
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = n_in, n_out
    else:
        module.nx, module.nf = n_in, n_out
    result: nn.Module = module
    return result


def resize(layer: nn.Module, spec: Spec) -> nn.Module:
    """Give the projections of a decoder layer other shapes, in place; their weights are unset.

    Args:
        layer: A decoder layer; it is changed.
        spec: ``linear`` (path -> [outputs, inputs] or [outputs, inputs, has a bias]),
            ``attributes`` (path of a module -> what is set on it) and ``config`` (path of a
            module -> config fields of which it alone sees other values).

    Returns:
        The same layer, which now carries the spec.
    """
    for path, (n_out, n_in, *bias) in spec["linear"].items():
        parent, _, leaf = path.rpartition(".")
        linear = empty_linear(layer.get_submodule(path), n_out, n_in, *bias)
        setattr(layer.get_submodule(parent), leaf, linear)
    for path, values in spec.get("attributes", {}).items():
        for name, value in values.items():
            setattr(layer.get_submodule(path), name, value)
    for path, fields in spec.get("config", {}).items():
        module: Any = layer.get_submodule(path)
        module.config = ConfigView(module.config, fields)
    layer.__dict__["streamline_spec"] = dict(spec)
    return layer


class SlicedLayer(LayerModule):
    """A decoder layer on a residual stream of less width.

    ``x <- x Q_1 + attention(norm(x))``, ``x <- x Q_2 + mlp(norm(x))`` with norms without scale; in
    a parallel layer both sublayers read the same ``x`` and there is one Q. The attention and the
    MLP are the family's own, their projections resized; they keep their names. Dropout between a
    sublayer and the residual, if the family has it there, is kept.

    Args:
        layer: A fresh decoder layer of the family; its parts are used.
        spec: ``d`` (widths before, between and after the sublayers; before and after in a parallel
            layer), ``linear`` (shapes, see :func:`resize`), ``attention`` (its name), ``mlp``
            (names of the modules that are applied in turn), ``norms`` (their two names), ``width``
            and ``eps`` of the norms, and ``dropout``.

    Reference:
        SliceGPT, arXiv:2401.15024, section 3.3.
    """

    def __init__(self, layer: nn.Module, spec: Spec) -> None:
        super().__init__()
        resize(layer, spec)
        #: Names of a decoder layer's positional arguments after the hidden states.
        self.names = list(inspect.signature(type(layer).forward).parameters)[2:]
        self.description = dict(spec)
        for name in (spec["attention"], *spec["mlp"]):
            self.add_module(name, layer.get_submodule(name))
        for name in spec["norms"]:
            self.add_module(name, UnitNorm(spec["width"], spec["eps"]))
        weight = next(self.parameters())
        widths = spec["d"]
        self.parallel = len(widths) == 2
        self.attn_shortcut = nn.Parameter(weight.new_empty(widths[0], widths[1]))
        if not self.parallel:
            self.mlp_shortcut = nn.Parameter(weight.new_empty(widths[1], widths[2]))

    def attend(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Norm and attention, [B, T, d] to the width of its output projection."""
        known = dict(zip(self.names, args, strict=False))
        norm = self.get_submodule(self.description["norms"][0])
        attention = self.get_submodule(self.description["attention"])
        output = attention(norm(hidden_states), **known, **kwargs)
        return self.drop(output[0] if isinstance(output, tuple) else output)

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """Norm and MLP, [B, T, d] to the width of its output projection."""
        hidden_states = self.get_submodule(self.description["norms"][1])(hidden_states)
        for name in self.description["mlp"]:
            hidden_states = self.get_submodule(name)(hidden_states)
        return self.drop(hidden_states)

    def drop(self, hidden_states: Tensor) -> Tensor:
        """Residual dropout, in training only."""
        rate: float = self.description["dropout"]
        return nn.functional.dropout(hidden_states, rate, self.training)

    def transform(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Both sublayers."""
        attended = self.attend(hidden_states, *args, **kwargs)
        attended = hidden_states @ self.attn_shortcut + attended
        if self.parallel:
            return attended + self.feed_forward(hidden_states)
        hidden_states = attended
        return hidden_states @ self.mlp_shortcut + self.feed_forward(hidden_states)

    def spec(self) -> Spec:
        """What the layer was made from."""
        return dict(self.description)


def build_shell(model: nn.Module, spec: Spec) -> None:
    """Give a model the embeddings, final norm and head that sliced layers need, in place.

    Args:
        model: A model of the base class; the new weights are unset.
        spec: ``embeddings`` (path -> width), ``norm`` ([path, width, eps]) and ``head`` ([path,
            inputs, has a bias]), which a model without a head has not.
    """
    for path, width in spec["embeddings"].items():
        embedding: Any = model.get_submodule(path)
        weight = embedding.weight
        shape = (weight.shape[0], width)
        embedding.weight = nn.Parameter(weight.new_empty(shape), weight.requires_grad)
        embedding.embedding_dim = width
    path, width, eps = spec["norm"]
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, UnitNorm(width, eps))
    if "head" in spec:
        path, n_in, bias = spec["head"]
        parent, _, leaf = path.rpartition(".")
        head: Any = model.get_submodule(path)
        setattr(
            model.get_submodule(parent), leaf, empty_linear(head, head.out_features, n_in, bias)
        )
    model.__dict__["streamline_shell"] = dict(spec)


@builder("resized")
def _resized(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return resize(layer, spec)


@builder("sliced")
def _sliced(spec: Spec, config: PretrainedConfig, layer: nn.Module) -> nn.Module:
    return SlicedLayer(layer, spec)
