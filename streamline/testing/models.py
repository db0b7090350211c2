"""Tiny random models and a tiny tokenizer, built in memory, for tests and conformance.

No file, no hub, a few thousand parameters: what holds for these holds for the architecture. The
same factories serve this package's own tests, ``streamline-bench validate`` and the tests of
third-party plugins.

Example::

    model = tiny_model("llama", n_layers=4, tied=True)
    ids = tiny_tokenizer()("a sentence", return_tensors="pt").input_ids
    logits = model(ids).logits
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamline.errors import UnknownNameError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["FAMILIES", "VOCAB_SIZE", "tiny_config", "tiny_model", "tiny_tokenizer"]

VOCAB_SIZE = 320
"""Rows of the tiny models' embeddings: at least the tiny tokenizer's 259 tokens."""

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
_ROPE: dict[str, Any] = {
    **_BASE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {**_BASE, "hidden_size": 32, "n_head": 4},
    "falcon": {
        **_BASE,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "alibi": False,
    },
    "gemma2": {**_ROPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 256},
    "gemma3_text": {
        **_ROPE,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 256,
        "sliding_window_pattern": 2,
    },
    "gpt2": {**_BASE, "n_embd": 32, "n_head": 4, "n_positions": 512},
    "gpt_neox": {
        **_BASE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "llama": _ROPE,
    "mistral": {**_ROPE, "sliding_window": None},
    "mixtral": {**_ROPE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": _ROPE,
    "olmoe": {**_ROPE, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        **_BASE,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "phi3": _ROPE,
    "qwen2": _ROPE,
    "qwen3": {**_ROPE, "head_dim": 8},
    "qwen3_moe": {
        **_ROPE,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
_LAYER_KEY = {"bloom": "n_layer", "gpt2": "n_layer"}

FAMILIES = tuple(_FAMILIES)
"""The model types that :func:`tiny_model` can build."""


def tiny_config(
    family: str, *, n_layers: int = 6, tied: bool = False, **changes: Any
) -> PretrainedConfig:
    """The configuration of a tiny model: hidden size 32, 4 heads (2 for keys where grouped).

    Dropout is off wherever the family has it, so that training mode is deterministic too.

    Args:
        family: One of :data:`FAMILIES`.
        n_layers: Number of decoder layers.
        tied: Whether the head uses the embedding's weights.
        **changes: Fields of the configuration with other values.

    Raises:
        UnknownNameError: If the family is not one of :data:`FAMILIES`.
    """
    from transformers import AutoConfig

    if family not in _FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnknownNameError(f"unknown tiny model family {family!r}; choose one of: {known}")
    fields = {
        **_FAMILIES[family],
        _LAYER_KEY.get(family, "num_hidden_layers"): n_layers,
        "tie_word_embeddings": tied,
        **changes,
    }
    config = AutoConfig.for_model(family, **fields)
    for name in vars(config):
        if name.endswith(("dropout", "_pdrop")) and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


def tiny_model(
    family: str,
    *,
    n_layers: int = 6,
    tied: bool = False,
    seed: int = 0,
    **changes: Any,
) -> PreTrainedModel:
    """A random causal language model of one family, float32, on the CPU, in eval mode.

    The weights are drawn wider than the library initialises them (standard deviation 0.15, and
    norms and biases away from ones and zeros), so that every layer matters: a missing layer, a
    missing norm or a shifted position shows in the logits. The global random state is restored.

    Args:
        family: One of :data:`FAMILIES`.
        n_layers: Number of decoder layers.
        tied: Whether the head uses the embedding's weights.
        seed: Seed of the weights.
        **changes: Fields of the configuration with other values.

    Returns:
        The model; its vocabulary has :data:`VOCAB_SIZE` rows.

    Raises:
        UnknownNameError: If the family is not one of :data:`FAMILIES`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, n_layers=n_layers, tied=tied, **changes)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0.0, 0.15, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise)
            else:
                parameter.copy_(noise)
    result: PreTrainedModel = model.eval()
    return result


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer built in memory: 256 bytes, then ``<pad>``, ``<s>``, ``</s>``.

    Each byte of the text is one token, so any text can be encoded and decoded without loss. No
    special token is added by itself; the pad, beginning and end tokens are 256, 257 and 258.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
