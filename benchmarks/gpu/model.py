"""A Llama of some shape with random weights, made on the device itself: no file, no network.

Times and memory depend on shapes alone, so random weights measure what trained ones would. Two
things are made as in a trained model, for results to say something: layers add to the residual
stream, and the head prefers some tokens clearly.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

__all__ = ["SHAPES", "random_llama"]

SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    },
}
_LOUDER = 3.0  # output projections and head, over the library's own start


def random_llama(
    shape: str, tokenizer: Any, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PreTrainedModel:
    """The model, without gradients, in eval mode; its vocabulary is the tokenizer's.

    Args:
        shape: A key of `SHAPES`.
        tokenizer: Gives the vocabulary and its special tokens.
        device: Where the weights are drawn.
        dtype: Of the weights.
        seed: Of the weights; the global random state is restored.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SHAPES[shape],
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.mul_(_LOUDER)
    return model.eval().requires_grad_(False)
