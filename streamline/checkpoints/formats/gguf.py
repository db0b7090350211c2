"""A checkpoint as one GGUF file, written by the `gguf` library: for llama.cpp and what runs on it.

Llama, Mistral, Qwen 2 and Qwen 3 are written as themselves; Llama-shaped models in which layers
lack their attention as ``deci``, llama.cpp's architecture of blocks that differ. One tensor is in
memory at a time.

Example::

    write_gguf(Path("out/checkpoint"), Path("out/served"))     # out/served/model.gguf
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from streamline.checkpoints.formats import nemotron_nas
from streamline.checkpoints.formats.form import Form, read_form, refuse
from streamline.checkpoints.formats.gguf_tokenizer import add_tokenizer, why_no_tokenizer
from streamline.files import temporary_of
from streamline.sources.weights import WeightSource

__all__ = ["FILE", "why_not", "write_gguf"]

NAME, FILE = "gguf", "model.gguf"
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_ROPES = ("default", "linear", "llama3")
#: llama.cpp's rotary embedding of these turns neighbouring channels, transformers' the two halves.
_NEIGHBOURS = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.DECI)
_TYPES = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def why_not(form: Form) -> str | None:
    """Why a GGUF file cannot hold a model, as the end of a sentence; None if it can."""
    config = form.config
    if form.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return f"{form.model_type} is not among the types that are written here: {known}"
    if config.hidden_act != "silu":
        return f"its MLPs use {config.hidden_act}, those of llama.cpp silu"
    if not form.plain:
        if "no-mlp" in form.kinds:
            return "llama.cpp leaves a block without MLP out altogether, its attention too"
        reason = nemotron_nas.why_no_blocks(form)
        if reason is not None:
            return f"llama.cpp's blocks that differ are those of nemotron-nas, and {reason}"
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        return f"its attention sees {window} tokens, which llama.cpp does not keep to for its type"
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in _ROPES:
        return f"its rotary positions are of the kind {rope}; written are {', '.join(_ROPES)}"
    return None


def write_gguf(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint as ``model.gguf``.

    Args:
        checkpoint: A folder that :func:`streamline.checkpoints.checkpoint.save` wrote; without a
            tokenizer the file has none either.
        folder: A folder; it gets one file.

    Raises:
        UnsupportedModelError: If such a file cannot hold it, or its tokenizer is of a kind that is
            not known here.
    """
    form = read_form(checkpoint)
    reason = why_not(form) or why_no_tokenizer(checkpoint)
    if reason is not None:
        raise refuse(NAME, reason)
    architecture = ARCHITECTURES[form.model_type] if form.plain else gguf.MODEL_ARCH.DECI
    file = folder / FILE
    temporary = temporary_of(file)
    writer = GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True)
    try:
        with WeightSource(checkpoint) as source:
            dtype = max((source[key].dtype for key in source), key=lambda kind: kind.itemsize)
            _add_settings(writer, form, checkpoint.resolve().name, _TYPES[dtype][1])
            add_tokenizer(writer, checkpoint, form.config.vocab_size)
            factors = _rope_factors(form.config)
            if factors is not None:
                writer.add_tensor("rope_freqs.weight", factors)
            for name, tensor in _tensors(form, source, architecture):
                _add(writer, name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        writer.close()
    temporary.replace(file)


def _add_settings(writer: GGUFWriter, form: Form, name: str, file_type: LlamaFileType) -> None:
    """What llama.cpp has to know of a model; one value for each block where they differ."""
    config = form.config
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(form.layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if form.plain:
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv)
        writer.add_feed_forward_length(config.intermediate_size)
        return
    kinds = form.kinds
    attends = [kind == "layer" for kind in kinds]
    writer.add_head_count([heads if here else 0 for here in attends])
    writer.add_head_count_kv([kv if here else 0 for here in attends])
    widths = [form.layer(index).get("intermediate") for index in range(len(kinds))]
    writer.add_feed_forward_length([width or config.intermediate_size for width in widths])


def _tensors(
    form: Form, source: WeightSource, architecture: gguf.MODEL_ARCH
) -> Iterator[tuple[str, Tensor]]:
    """Name in the file -> tensor, as llama.cpp computes with it."""
    names = gguf.get_tensor_name_map(architecture, len(form.layers))
    config = form.config
    for key, (empty, place) in nemotron_nas.named_tensors(form, source):
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise refuse(NAME, f"llama.cpp has no tensor for {key}")
        tensor = source.read(place, empty.dtype)
        if architecture in _NEIGHBOURS:
            if ".q_proj." in key:
                tensor = _neighbours(tensor, config.num_attention_heads)
            elif ".k_proj." in key:
                tensor = _neighbours(tensor, config.num_key_value_heads)
        yield name, tensor


def _neighbours(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a projection, [heads * d, ...], the two halves of each head one by one."""
    halves = weight.reshape(n_heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add(writer: GGUFWriter, name: str, tensor: Tensor) -> None:
    """Add a tensor in its number format; vectors are float32, as llama.cpp wants them."""
    if tensor.dim() == 1 or tensor.dtype == torch.float32:
        writer.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:
        kind = GGMLQuantizationType.BF16
        rounded = gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name, rounded, raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.numpy())


def _rope_factors(config: Any) -> np.ndarray[Any, Any] | None:
    """What Llama 3 divides its rotary frequencies by, [head_dim / 2]; None for other kinds."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelength = 2 * math.pi * rope["rope_theta"] ** exponents
    old, low, high = (
        rope[name]
        for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    smooth = ((old / wavelength - low) / (high - low)).clamp(0, 1)
    factors: np.ndarray[Any, Any] = (1 / ((1 - smooth) / rope["factor"] + smooth)).numpy()
    return factors
