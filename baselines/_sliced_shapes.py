"""Shapes and parameter counts of a sliced model, from the dense model's shapes alone.

Example:
    sliced_parameters(decoder, 448)      # {"embeddings": ..., "head": ..., ..., "total": ...}
"""

from __future__ import annotations

from typing import Any

from torch import nn

from streamline.engine.decoder import Decoder, count_parameters, submodule
from streamline.modeling.modeling_layers import Spec

from ._groups import shape


def layer_spec(decoder: Decoder, index: int, width: int) -> Spec:
    """The spec of a layer as a ``SlicedLayer`` (:mod:`streamline.modeling.modeling_narrow`).

    The last layer writes in full width.
    """
    family, layer = decoder.family, decoder.layers[index]
    end = decoder.hidden_size if index == decoder.n_layers - 1 else width
    parallel = is_parallel(decoder)
    heads = (family.qkv,) if family.fused else (family.q, family.k, family.v)
    linear = {}
    for norm, paths in ((family.attention_norm, heads), (family.mlp_norm, family.mlp_in)):
        shifted = getattr(submodule(layer, norm), "bias", None) is not None
        for path in paths:
            module = submodule(layer, path)
            linear[path] = [shape(module)[0], width, shifted or module.bias is not None]
    for path, out in ((family.o, end if parallel else width), (family.mlp_out, end)):
        module = submodule(layer, path)
        linear[path] = [out, shape(module)[1], module.bias is not None]
    return {
        "kind": "sliced",
        "d": [width, end] if parallel else [width, width, end],
        "linear": linear,
        "attention": family.attention,
        "mlp": [family.mlp] if family.mlp else [*family.mlp_in, "activation_fn", family.mlp_out],
        "norms": [family.attention_norm, family.mlp_norm],
        "width": decoder.hidden_size,
        "eps": norm_eps(submodule(layer, family.attention_norm)),
        "dropout": residual_dropout(layer),
    }


def shell_spec(decoder: Decoder, width: int) -> Spec:
    """The spec of embeddings, final norm and head, see ``modeling_narrow.build_shell``."""
    family, model = decoder.family, decoder.model
    norm = submodule(model, family.norm)
    head = submodule(model, family.head)
    names = {id(module): name for name, module in model.named_modules()}
    tokens = names[id(model.get_input_embeddings())]
    bias = getattr(norm, "bias", None) is not None or head.bias is not None
    return {
        "embeddings": {path: width for path in (tokens, family.positions) if path},
        "norm": [family.norm, decoder.hidden_size, norm_eps(norm)],
        "head": [family.head, decoder.hidden_size, bias],
    }


def is_parallel(decoder: Decoder) -> bool:
    """Whether attention and MLP of a layer read the same states."""
    config: Any = decoder.config
    return decoder.family.parallel and bool(getattr(config, "use_parallel_residual", True))


def norm_eps(norm: nn.Module) -> float:
    """What a norm adds to the variance."""
    eps: Any = getattr(norm, "variance_epsilon", None)
    return float(norm.eps if eps is None else eps)  # type: ignore[arg-type]


def residual_dropout(layer: Any) -> float:
    """Dropout between a sublayer and the residual, as far as the layer itself applies it."""
    rate = getattr(layer, "dropout", None)
    for name in ("resid_attn_dropout", "post_attention_dropout"):
        rate = rate if rate is not None else getattr(getattr(layer, name, None), "p", None)
    return float(rate or 0.0)


def sliced_parameters(decoder: Decoder, width: int) -> dict[str, int]:
    """Parameters of the sliced model, by part.

    Args:
        decoder: The dense model; its weights may lie on the meta device.
        width: Width kept, d.

    Returns:
        ``embeddings``, ``head``, ``blocks`` (projections and what the family has beside them),
        ``shortcuts`` and their sum, ``total``.
    """
    shell = shell_spec(decoder, width)
    embeddings = sum(
        len(submodule(decoder.model, path).weight) * d  # type: ignore[arg-type]
        for path, d in shell["embeddings"].items()
    )
    path, n_in, bias = shell["head"]
    head = shape(submodule(decoder.model, path))[0] * (n_in + bias)
    blocks = shortcuts = 0
    for index, layer in enumerate(decoder.layers):
        spec = layer_spec(decoder, index, width)
        replaced = count_parameters(
            submodule(layer, name) for name in (*spec["linear"], *spec["norms"])
        )
        blocks += count_parameters([layer]) - replaced
        blocks += sum(n_out * (n_in + bias) for n_out, n_in, bias in spec["linear"].values())
        shortcuts += sum(a * b for a, b in zip(spec["d"], spec["d"][1:], strict=False))
    counts = {"embeddings": embeddings, "head": head, "blocks": blocks, "shortcuts": shortcuts}
    return counts | {"total": sum(counts.values())}
