"""Llama-shaped models whose blocks differ, as vLLM, SGLang, TensorRT-LLM and MLX serve them.

The format (``model_type`` ``nemotron-nas``, class ``DeciLMForCausalLM``) is Llama's with a
description of each block: an attention or an MLP may be missing, and MLPs may differ in width. A
layer without attention or without MLP is such a block, and so is a SwiGLU with norm and residual.

Example::

    write_nemotron_nas(Path("out/checkpoint"), Path("out/served"))
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.checkpoints.formats.form import Form, read_form, refuse
from streamline.checkpoints.streamed import write_shards
from streamline.files import write_json_atomic
from streamline.modeling import configuration_decilm
from streamline.modeling.modeling_layers import Spec
from streamline.sources.weights import WeightSource

__all__ = [
    "ENGINES",
    "block_configs",
    "named_tensors",
    "why_no_blocks",
    "why_not",
    "write_nemotron_nas",
]

NAME = "nemotron-nas"
ENGINES = ("vLLM", "SGLang", "TensorRT-LLM", "mlx-lm")
_STEP = 256  # widths of MLPs are given as a factor and rounded up to a multiple of it
_LAYERS = "model.layers."


def why_not(form: Form) -> str | None:
    """Why the format cannot hold a model, as the end of a sentence; None if it can."""
    reason = why_no_blocks(form)
    if reason is not None:
        return reason
    for index in range(len(form.layers)):
        width = _width(form.layer(index), form.config)
        if width % _STEP:
            return f"layer {index} has an MLP of {width} units, no multiple of {_STEP}"
    return None


def why_no_blocks(form: Form) -> str | None:
    """Why a model's layers are not blocks of Llama with or without attention or MLP."""
    config = form.config
    if form.model_type not in ("llama", "mistral") or getattr(config, "sliding_window", None):
        return f"its blocks are Llama's, and this is {form.model_type}"
    if not form.whole:
        return "its embeddings, norms or head are not the base model's own"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "its projections have biases"
    if config.hidden_act != "silu":
        return f"its MLPs use {config.hidden_act}, the format's silu"
    heads = config.num_attention_heads
    if config.head_dim and config.head_dim * heads != config.hidden_size:
        return f"{heads} heads of {config.head_dim} channels are not its width"
    for index in range(len(form.layers)):
        reason = _why_no_block(form.layer(index), config)
        if reason is not None:
            return f"layer {index} {reason}"
    if not _attends(form.layer(0)):
        return "its first block has no attention, where engines begin the residual stream"
    return None


def block_configs(form: Form) -> list[dict[str, Any]]:
    """The description of each block of a model that the format can hold."""
    config = form.config
    group = config.num_attention_heads // config.num_key_value_heads
    blocks = []
    for index in range(len(form.layers)):
        spec = form.layer(index)
        attends, width = _attends(spec), _width(spec, config)
        attention = {
            "n_heads_in_group": group if attends else None,
            "no_op": not attends,
            "num_sink_tokens": None,
            "replace_with_linear": False,
            "sparsify": None,
            "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False,
            "window_length": None,
        }
        mlp = {
            "ffn_mult": round(1.5 * width / config.hidden_size, 6) if width else None,
            "no_op": not width,
            "replace_with_linear": False,
            "sparsify": None,
        }
        blocks.append({"attention": attention, "ffn": mlp})
    return blocks


def write_nemotron_nas(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint in the format.

    Args:
        checkpoint: A folder that :func:`streamline.checkpoints.checkpoint.save` wrote.
        folder: A new folder.

    Raises:
        UnsupportedModelError: If the format cannot hold it.
    """
    form = read_form(checkpoint)
    reason = why_not(form)
    if reason is not None:
        raise refuse(NAME, reason)
    written = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    dropped = ("streamline", "base_model_type", "layer_types", "head_dim", "sliding_window")
    fields = {name: value for name, value in written.items() if name not in dropped}
    fields |= {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "block_configs": block_configs(form),
        "model_type": NAME,
    }
    write_json_atomic(folder / "config.json", dict(sorted(fields.items())))
    with WeightSource(checkpoint) as source:
        tensors = dict(named_tensors(form, source))
        places = {id(tensor): name for name, (tensor, _) in tensors.items()}
        names = {name: key for name, (_, key) in tensors.items()}

        def value(tensor: Tensor) -> Tensor:
            return source.read(names[places[id(tensor)]], tensor.dtype)

        write_shards(folder, ((name, tensor) for name, (tensor, _) in tensors.items()), value)
    code = Path(configuration_decilm.__file__)
    shutil.copyfile(code, folder / code.name)


def named_tensors(form: Form, source: WeightSource) -> Iterator[tuple[str, tuple[Tensor, str]]]:
    """Name in the format -> an empty tensor of its shape, and its name in the checkpoint."""
    for key in source:
        if not key.startswith(_LAYERS):
            yield key, (_empty(source, key), key)
    for index in range(len(form.layers)):
        shared = form.layers[index].get("of", index)
        prefix = f"{_LAYERS}{shared}."
        for key in source:
            if key.startswith(prefix):
                inner = key.removeprefix(prefix)
                if form.kinds[index] == "swiglu":
                    norm = inner.startswith("norm.")
                    inner = f"post_attention_layernorm.{inner[5:]}" if norm else f"mlp.{inner}"
                yield f"{_LAYERS}{index}.{inner}", (_empty(source, key), key)


def _empty(source: WeightSource, key: str) -> Tensor:
    stored = source[key]
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _attends(spec: Spec) -> bool:
    return spec["kind"] in ("layer", "no-mlp")


def _width(spec: Spec, config: Any) -> int:
    """Hidden units of a block's MLP; 0 if it has none."""
    if spec["kind"] == "no-mlp":
        return 0
    return int(spec.get("intermediate", config.intermediate_size))


def _why_no_block(spec: Spec, config: Any) -> str | None:
    kind = spec["kind"]
    if kind == "swiglu":
        if not spec["residual"] or spec.get("norm") != config.rms_norm_eps or spec["bias"]:
            return (
                "is a SwiGLU without the norm, or without the addition, of a block "
                "(llm-streamline-swiglu+norm=true+residual=true has both)"
            )
    elif kind not in ("layer", "no-attention", "no-mlp"):
        return f"is of the kind {kind}, not a block with or without attention or MLP"
    return None
