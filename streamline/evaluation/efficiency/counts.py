"""What a model's speed comes from, counted without a clock: weights, FLOPs, bytes of its cache.

Example::

    model = assemble(path)
    found = counts(model, context=64)
    found["flops_per_token"], found["kv_cache_bytes_per_token"]
    shape_of(model) == shape_of(other)          # then both take equally long
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from streamline.engine.decoder import count_parameters, submodule
from streamline.engine.families import family_of
from streamline.engine.stored import stored_of
from streamline.evaluation.efficiency.decoding import last_logits, prompt
from streamline.hashing import content_key
from streamline.modeling.modeling_state import state_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["cache_bytes", "checkpoint_bytes", "counts", "layers_of", "shape_of"]

#: What a module holds that is no part of its shape: where its keys and values lie in the cache.
_PLACES = ("layer_idx", "layer_id", "layer_number")


def counts(model: PreTrainedModel, context: int) -> dict[str, int]:
    """What is counted of a model: the keys of :class:`streamline.results.blocks.efficiency.Counts`.

    FLOPs and bytes of the cache are those of one token that is decoded behind others, as PyTorch
    counts them while the model runs.

    Args:
        model: A causal language model in eval mode.
        context: Tokens before it.
    """
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        last_logits(model, prompt(model, 1, context), cache)
        before = cache_bytes(cache)
        with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
            last_logits(model, prompt(model, 1, 1), cache)
    return {
        "parameters": count_parameters([model]),
        "checkpoint_bytes": checkpoint_bytes(model),
        "flops_per_token": int(counter.get_total_flops()),
        "kv_cache_bytes_per_token": cache_bytes(cache) - before,
    }


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of the weights as they are stored; a tensor of several names is kept once."""
    own = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    stored = stored_of(model)
    saved = 0 if stored is None else stored.saved
    return int(sum(tensor.numel() * tensor.element_size() for tensor in own.values())) - saved


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache of transformers."""
    states = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(s.numel() * s.element_size() for s in states if isinstance(s, Tensor))


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """A model's decoder layers."""
    return list(submodule(model, family_of(model.config.model_type).layers).children())


def shape_of(model: PreTrainedModel) -> str:
    """A key that models share which run the same modules on tensors of the same shapes.

    Numbers that modules hold (eps, scalings, windows) are part of it, values of weights are not.
    """
    layers = layers_of(model)
    inside = {id(part) for layer in layers for part in layer.modules()}
    shell = [part for part in model.modules() if id(part) not in inside]
    stored = stored_of(model)
    how = [] if stored is None else [[stored.way, stored.saved]]
    return content_key([[_shape(layer) for layer in layers], [_own(part) for part in shell], *how])


def _shape(layer: nn.Module) -> list[Any]:
    state = {
        path: {name: value for name, value in held.items() if name not in _PLACES}
        for path, held in state_of(layer).items()
    }
    return [state, [_own(part) for part in layer.modules()]]


def _own(module: nn.Module) -> list[Any]:
    """A module's class and its own tensors, without those of its parts."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return [kind, [(name, list(t.shape), str(t.dtype)) for name, t in tensors]]


def _attention_flops(
    query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """FLOPs of attention from shapes [B, H, n, d], [B, G, m, d], [B, G, m, e]."""
    batch, heads, n, width = query
    return int(2 * batch * heads * n * key[-2] * (width + value[-1]))


def _experts_flops(rows: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of rows [n, d], each through the matrix of its expert [experts, d, e], from shapes."""
    return int(2 * rows[0] * rows[1] * weight[-1])


def _formulas() -> dict[Any, Any]:
    """Formulas of what PyTorch counts otherwise or not at all.

    Its own lack the CPU's kernel of attention, refuse fewer heads of keys than of queries, and know
    no experts. Transformers has an operation for these once a mixture was made.
    """
    attention = (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    named: list[tuple[Any, str, Any]] = [
        *((torch.ops.aten, name, _attention_flops) for name in attention),
        (torch.ops.aten, "_grouped_mm", _experts_flops),
        (torch.ops.transformers, "grouped_mm_fallback", _experts_flops),
    ]
    return {getattr(ops, name): formula for ops, name, formula in named if hasattr(ops, name)}
