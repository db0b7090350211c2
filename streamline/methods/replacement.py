"""Networks that replace a span of layers, and how they start.

Each is called like a decoder layer. They are made in float32 on the device of the span's first
layer, ready to be trained; the training stage converts them to the model's dtype.

Example:
    module = make("ffn", decoder, Span(21, 30), init="random", seed=0)
    added_parameters("ffn", decoder)(9)                 # 134,238,208 for Llama-2-7B

    maps = linear_maps(decoder, [span], batches)
    make("linear", decoder, span, init="linear", linear=maps[span])

Notation: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from streamline.engine.budget import mean_layer_parameters
from streamline.engine.decoder import Decoder
from streamline.engine.seed import seeded
from streamline.errors import ConfigError, UnknownNameError, UnsupportedModelError
from streamline.methods.layers import at_hand, layer_copy, projection
from streamline.modeling.modeling_layers import FFN, LayerModule, LinearMap, Repeated, Stack, SwiGLU
from streamline.plan import Span

#: Kinds of one network. Each also exists as ``shared-KIND`` (one network, applied once per layer
#: of the span) and ``multiple-KIND`` (a network of its own for every layer of the span).
KINDS = ("ffn", "mlp", "swiglu", "linear", "layer")
PREFIXES = ("shared-", "multiple-")
#: How each kind may start.
INITS = {
    "ffn": ("random", "linear", "weighted", "identity"),
    "mlp": ("random", "linear", "weighted", "identity"),
    "swiglu": ("random",),
    "linear": ("random", "linear", "weighted", "identity"),
    "layer": ("first", "last", "mean", "random"),
}

#: Starts that compute a given linear map.
MAPPED = ("linear", "weighted")


def make(
    kind: str,
    decoder: Decoder,
    span: Span,
    *,
    init: str = "random",
    residual: bool = False,
    norm: bool = False,
    seed: int = 0,
    linear: tuple[Tensor, Tensor] | None = None,
) -> nn.Module:
    """Make the network that replaces a span.

    Args:
        kind: ``"ffn"`` (d-4d-d, ReLU), ``"mlp"`` (d-2d-d, ReLU), ``"swiglu"`` (the model's own
            intermediate size; of a mixture that of all experts a token meets), ``"linear"``,
            ``"layer"`` (a decoder layer), or one of these after ``shared-`` (one network applied
            once per layer of the span) or ``multiple-`` (one network per layer of the span, in a
            row).
        decoder: The dense model; it is not changed.
        span: The layers to replace.
        init: ``"random"``; for layers also ``"first"``, ``"last"`` or ``"mean"`` of the span's
            layers; for ``ffn``, ``mlp`` and ``linear`` also ``"linear"`` or ``"weighted"``
            (computes exactly the map given as ``linear``) and ``"identity"`` (computes its input).
        residual: Whether an ``ffn``, ``mlp`` or ``swiglu`` adds its input to its output. With
            ``init="random"`` its output projection then starts at zero.
        norm: Whether a ``swiglu`` has an RMS norm before its projections, with the model's eps.
        seed: Seed of everything random; the global random state is restored.
        linear: ``(W [D, D], b [D])`` for ``init="linear"``, as from
                :func:`streamline.methods.linear_map.linear_maps`, or for ``init="weighted"``, as
                with its ``weighted``.

    Returns:
        A module in float32 with gradients, on the device of the span's first layer.

    Raises:
        UnknownNameError: If the kind does not exist.
        ConfigError: If the span is empty, or the kind cannot start in this way.
    """
    prefix, base = split_kind(kind)
    if not len(span) or span.stop > decoder.n_layers:
        raise ConfigError(
            f"a replacement needs a span of 1 to {decoder.n_layers} layers of {decoder.name}, "
            f"got {span}"
        )
    check_start(kind, init, residual)
    if init in MAPPED and linear is None:
        raise ConfigError(f'init="{init}" needs linear=(W, b), for example from linear_maps')
    if init in MAPPED and prefix and len(span) > 1:
        raise ConfigError(f'{kind} over {len(span)} layers cannot start from one map; use "{base}"')
    spans = [span]
    if prefix == "multiple-":
        spans = [Span(i, i + 1) for i in span.layers]
    with seeded(seed):
        parts = [_one(base, decoder, part, init, residual, norm, linear) for part in spans]
    module = parts[0]
    if prefix == "multiple-":
        module = Stack(parts)
    if prefix == "shared-":
        module = Repeated(module, len(span))
    if isinstance(module, LayerModule):
        module.tuple_output = decoder.family.tuple_output
    return module.to(device=home(decoder, span.start), dtype=torch.float32).requires_grad_(True)


def check_start(kind: str, init: str, residual: bool) -> None:
    """Refuse a way to start that a kind does not have.

    Args:
        kind: As for :func:`make`.
        init: Likewise.
        residual: Likewise.

    Raises:
        UnknownNameError: If the kind does not exist.
        ConfigError: If it cannot start in this way, or has no residual form.
    """
    _, base = split_kind(kind)
    if init not in INITS[base]:
        raise ConfigError(
            f"{kind} cannot start from init={init!r}; choose {', '.join(INITS[base])}"
        )
    if residual and base in ("linear", "layer"):
        raise ConfigError(f"{kind} has no residual form; use residual=False")


def home(decoder: Decoder, layer: int) -> torch.device:
    """The device of what replaces a layer: the layer's, or the model's if it is offloaded.

    An offloaded layer's weights are on the meta device between its calls.
    """
    device = next(decoder.layers[layer].parameters()).device
    return decoder.device if device.type == "meta" else device


def added_parameters(kind: str, decoder: Decoder, *, norm: bool = False) -> Callable[[int], int]:
    """Parameters that a replacement of ``n`` layers adds, for any ``n``; 0 adds nothing.

    Args:
        kind: As for :func:`make`.
        decoder: The dense model; its weights may lie on the meta device. It is counted once.
        norm: As for :func:`make`.

    Raises:
        UnknownNameError: If the kind does not exist.
    """
    prefix, base = split_kind(kind)
    if base == "layer":
        one = round(mean_layer_parameters(decoder))
    else:
        with torch.device("meta"):
            one = sum(p.numel() for p in _network(base, decoder, False, norm).parameters())
    return lambda n: one * n if prefix == "multiple-" else one * bool(n)


def blank(kind: str, decoder: Decoder, n: int, *, norm: bool = False) -> nn.Module:
    """A replacement's shapes without a start of its own, for planning.

    Args:
        kind: As for :func:`make`.
        decoder: A model in float32 whose tensors hold no data; its layers are taken.
        n: Layers in the span.
        norm: As for :func:`make`.
    """
    prefix, base = split_kind(kind)
    parts = [
        decoder.layers[i % decoder.n_layers]
        if base == "layer"
        else _network(base, decoder, False, norm)
        for i in range(n if prefix == "multiple-" else 1)
    ]
    module = Stack(parts) if prefix == "multiple-" else parts[0]
    return Repeated(module, n) if prefix == "shared-" else module


def split_kind(kind: str) -> tuple[str, str]:
    """A kind's prefix (or the empty string) and the kind of one network.

    Raises:
        UnknownNameError: If the kind does not exist.
    """
    prefix = next((p for p in PREFIXES if kind.startswith(p)), "")
    base = kind.removeprefix(prefix)
    if base not in KINDS:
        raise UnknownNameError(
            f"unknown kind of replacement {kind!r}; choose {', '.join(KINDS)}, "
            f"each also after {' or '.join(PREFIXES)}"
        )
    return prefix, base


def _network(kind: str, decoder: Decoder, residual: bool, norm: bool) -> FFN | SwiGLU | LinearMap:
    d = decoder.hidden_size
    if kind == "linear":
        return LinearMap(d)
    if kind == "swiglu":
        eps = _eps(decoder) if norm else None
        return SwiGLU(d, _mlp_width(decoder), residual=residual, norm=eps)
    return FFN(d, 4 * d if kind == "ffn" else 2 * d, residual=residual)


def _mlp_width(decoder: Decoder) -> int:
    """Hidden units of a model's MLP; of a mixture those of the experts that a token meets."""
    _, parameters = projection(decoder.layers[0], decoder.family.mlp_out)
    weight = next(iter(parameters.values()))
    if weight.dim() == 3:  # [experts, D, inner]
        return int(weight.shape[-1] * decoder.config.num_experts_per_tok)
    return weight.numel() // decoder.hidden_size


def _eps(decoder: Decoder) -> float:
    """The eps of a model's norms."""
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    found = (getattr(decoder.config, name, None) for name in names)
    return next((float(eps) for eps in found if eps is not None), 1e-5)


def _one(
    kind: str,
    decoder: Decoder,
    span: Span,
    init: str,
    residual: bool,
    norm: bool,
    linear: tuple[Tensor, Tensor] | None,
) -> nn.Module:
    if kind == "layer":
        return _layer(decoder, span, init)
    module = _network(kind, decoder, residual, norm)
    if init == "random":
        if isinstance(module, (FFN, SwiGLU)) and residual:
            out = module.fc2 if isinstance(module, FFN) else module.down_proj
            nn.init.zeros_(out.weight)
            if out.bias is not None:
                nn.init.zeros_(out.bias)
        return module
    d = decoder.hidden_size
    weight, bias = torch.eye(d), torch.zeros(d)
    if init in MAPPED and linear is not None:
        weight, bias = (tensor.detach().to("cpu", torch.float64) for tensor in linear)
        if weight.shape != (d, d) or bias.shape != (d,):
            raise ConfigError(
                f"linear must be (W [{d}, {d}], b [{d}]), "
                f"got {list(weight.shape)} and {list(bias.shape)}"
            )
    assert not isinstance(module, SwiGLU)
    set_linear(module, weight, bias)
    return module


@torch.no_grad()
def set_linear(module: FFN | LinearMap, weight: Tensor, bias: Tensor) -> None:
    """Make a network compute exactly ``W x + b``.

    An FFN does it as ``relu(W x) - relu(-W x)`` with its first 2 D units; the other units keep
    their random input weights and get output weights of zero, so they start without effect and can
    learn.

    Args:
        module: An FFN of at least 2 D units with ReLU and bias, or a linear map.
        weight: W, [D, D].
        bias: b, [D].

    Raises:
        ConfigError: If the network is too narrow or is not piecewise linear.
    """
    d = len(bias)
    if isinstance(module, LinearMap):
        module.map.weight.copy_(weight)
        module.map.bias.copy_(bias)
        return
    if module.fc1.out_features < 2 * d or module.activation != "relu" or module.fc1.bias is None:
        raise ConfigError(
            f"an FFN computes a linear map exactly with relu, bias and a width of {2 * d} or more; "
            f"this one has {module.activation} and width {module.fc1.out_features}"
        )
    eye = torch.eye(d, dtype=weight.dtype)
    if module.residual:
        weight = weight - eye
    module.fc1.weight[: 2 * d].copy_(torch.cat([weight, -weight]))
    module.fc1.bias[: 2 * d].zero_()
    module.fc2.weight.zero_()
    module.fc2.weight[:, : 2 * d].copy_(torch.cat([eye, -eye], dim=1))
    module.fc2.bias.copy_(bias)


@torch.no_grad()
def _layer(decoder: Decoder, span: Span, init: str) -> nn.Module:
    """A copy of a decoder layer in float32 that has no tensor in common with the model."""
    kinds = [
        [(name, p.shape) for name, p in decoder.layers[i].named_parameters()]
        for i in (span.layers if init == "mean" else (span.start, span.stop - 1))
    ]
    if init in ("last", "mean") and any(kind != kinds[0] for kind in kinds):
        raise UnsupportedModelError(
            f"the layers {span} of {decoder.name} are not alike, and one that starts from their "
            f'{init} takes the place of the first; take init="first"'
        )
    wanted = {"last": [span.stop - 1], "mean": list(span.layers)}.get(init, [span.start])
    copies, sums = list[nn.Module](), dict[str, Tensor]()
    for source in at_hand(decoder, wanted):
        copies = copies or [layer_copy(decoder, source).to("cpu", torch.float32)]
        for name, parameter in source.named_parameters() if init == "mean" else ():
            value = parameter.detach().to("cpu", torch.float64)
            sums[name] = sums[name] + value if name in sums else value
    (layer,) = copies
    for name, total in sums.items():
        layer.get_parameter(name).copy_(total / len(span))
    if init == "random":
        for module in layer.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fresh = torch.empty_like(parameter)
                if name == "bias":
                    fresh.zero_()
                setattr(module, name, nn.Parameter(fresh))
        for module in layer.modules():
            decoder.model._init_weights(module)
    return layer
