"""Short names of models, and the shapes of the public ones, so that a dry run needs no network.

The shapes are the published facts that decide parameter counts and layer numbers; everything else
(weights, tokenizer, generation settings) comes from the model's own repository when it is loaded.
Add a model by adding a row.

Example::

    MODEL_TABLE["llama2-7b"].hub_id     # "meta-llama/Llama-2-7b-hf"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["MODEL_TABLE", "ModelRow"]


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One short name.

    Attributes:
        hub_id: Repository on the hub; None for a model that comes from a wheel.
        model_type: The transformers model type of ``shape``; None if the shape is not packaged.
        shape: Fields of the model's config that differ from the defaults of its type.
    """

    hub_id: str | None
    model_type: str | None = None
    shape: dict[str, Any] = field(default_factory=dict)


def _opt(size: str, hidden: int, layers: int, heads: int, **more: Any) -> ModelRow:
    shape = {
        "vocab_size": 50272,
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    return ModelRow(hub_id=f"facebook/opt-{size}", model_type="opt", shape=shape | more)


def _llama(
    hub_id: str | None,
    *,
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    positions: int,
    model_type: str = "llama",
    theta: float = 10000.0,
    **more: Any,
) -> ModelRow:
    """A row for Llama and the families that share its field names."""
    shape = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
    return ModelRow(hub_id=hub_id, model_type=model_type, shape=shape | more)


def _llama2(hub_id: str, shape: tuple[int, ...], positions: int = 4096, **more: Any) -> ModelRow:
    """A row for models with Llama 2's number of tokens: width, layers, heads, MLP."""
    hidden, layers, heads, kv_heads, intermediate = shape
    return _llama(
        hub_id,
        vocab=32000,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        positions=positions,
        **more,
    )


def _smollm2(
    size: str, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, theta: float
) -> ModelRow:
    return _llama(
        None if size == "135M" else f"HuggingFaceTB/SmolLM2-{size}-Instruct",
        vocab=49152,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        positions=8192,
        theta=theta,
        tie_word_embeddings=True,
    )


def _qwen2(
    size: str, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, *, tied: bool
) -> ModelRow:
    return _llama(
        f"Qwen/Qwen2.5-{size}",
        model_type="qwen2",
        vocab=151936 if tied else 152064,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        positions=32768 if tied else 131072,
        theta=1000000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
    )


def _qwen3(
    size: str, hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool
) -> ModelRow:
    return _llama(
        f"Qwen/Qwen3-{size}",
        model_type="qwen3",
        vocab=151936,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        intermediate=intermediate,
        positions=40960,
        theta=1000000.0,
        rms_norm_eps=1e-6,
        head_dim=128,
        tie_word_embeddings=tied,
    )


def _pythia(size: str, hidden: int, layers: int, heads: int, vocab: int = 50304) -> ModelRow:
    shape = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
    }
    return ModelRow(hub_id=f"EleutherAI/pythia-{size}", model_type="gpt_neox", shape=shape)


_LLAMA3: dict[str, Any] = {
    "vocab": 128256,
    "hidden": 4096,
    "layers": 32,
    "heads": 32,
    "kv_heads": 8,
}
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama32(size: str, hidden: int, layers: int, heads: int, head_dim: int) -> ModelRow:
    return _llama(
        f"meta-llama/Llama-3.2-{size}",
        vocab=128256,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        intermediate=8192,
        positions=131072,
        rope_parameters=_LLAMA31_ROPE | {"factor": 32.0},
        head_dim=head_dim,
        tie_word_embeddings=True,
    )


MODEL_TABLE: dict[str, ModelRow] = {
    "smollm2-135m-instruct": _smollm2("135M", 576, 30, 9, 3, 1536, 100000.0),
    "smollm2-360m-instruct": _smollm2("360M", 960, 32, 15, 5, 2560, 100000.0),
    "smollm2-1.7b-instruct": _smollm2("1.7B", 2048, 24, 32, 32, 8192, 130000.0),
    "opt-125m": _opt("125m", 768, 12, 12),
    "opt-350m": _opt("350m", 1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt("1.3b", 2048, 24, 32),
    "opt-2.7b": _opt("2.7b", 2560, 32, 32),
    "opt-6.7b": _opt("6.7b", 4096, 32, 32),
    "opt-13b": _opt("13b", 5120, 40, 40),
    "llama2-7b": _llama2("meta-llama/Llama-2-7b-hf", (4096, 32, 32, 32, 11008)),
    "llama2-13b": _llama2("meta-llama/Llama-2-13b-hf", (5120, 40, 40, 40, 13824)),
    "llama2-70b": _llama2("meta-llama/Llama-2-70b-hf", (8192, 80, 64, 8, 28672)),
    "open-llama-3b-v2": _llama2(
        "openlm-research/open_llama_3b_v2", (3200, 26, 32, 32, 8640), 2048, rms_norm_eps=1e-6
    ),
    "tinyllama-1.1b": _llama2(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", (2048, 22, 32, 4, 5632), 2048
    ),
    "llama3-8b": _llama(
        "meta-llama/Meta-Llama-3-8B",
        **_LLAMA3,
        intermediate=14336,
        positions=8192,
        theta=500000.0,
    ),
    "llama3.1-8b": _llama(
        "meta-llama/Llama-3.1-8B",
        **_LLAMA3,
        intermediate=14336,
        positions=131072,
        rope_parameters=_LLAMA31_ROPE,
    ),
    "llama3.2-1b": _llama32("1B", 2048, 16, 32, 64),
    "llama3.2-3b": _llama32("3B", 3072, 28, 24, 128),
    "mistral-7b": _llama2(
        "mistralai/Mistral-7B-v0.1",
        (4096, 32, 32, 8, 14336),
        32768,
        model_type="mistral",
        sliding_window=4096,
    ),
    "qwen2.5-0.5b": _qwen2("0.5B", 896, 24, 14, 2, 4864, tied=True),
    "qwen2.5-1.5b": _qwen2("1.5B", 1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen2("3B", 2048, 36, 16, 2, 11008, tied=True),
    "qwen2.5-7b": _qwen2("7B", 3584, 28, 28, 4, 18944, tied=False),
    "qwen3-0.6b": _qwen3("0.6B", 1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3("1.7B", 2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3("4B", 2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3("8B", 4096, 36, 32, 12288, tied=False),
    "gemma3-1b": ModelRow(
        hub_id="google/gemma-3-1b-pt",
        model_type="gemma3_text",
        shape={
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2-1b": _llama(
        "allenai/OLMo-2-0425-1B",
        model_type="olmo2",
        vocab=100352,
        hidden=2048,
        layers=16,
        heads=16,
        kv_heads=16,
        intermediate=8192,
        positions=4096,
        theta=500000.0,
        rms_norm_eps=1e-6,
    ),
    "olmo2-7b": _llama(
        "allenai/OLMo-2-1124-7B",
        model_type="olmo2",
        vocab=100352,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        intermediate=11008,
        positions=4096,
        theta=500000.0,
        rms_norm_eps=1e-6,
    ),
    "olmoe-1b-7b": _llama(
        "allenai/OLMoE-1B-7B-0125",
        model_type="olmoe",
        vocab=50304,
        hidden=2048,
        layers=16,
        heads=16,
        kv_heads=16,
        intermediate=1024,
        positions=4096,
        num_experts=64,
        num_experts_per_tok=8,
    ),
    "mixtral-8x7b": _llama2(
        "mistralai/Mixtral-8x7B-v0.1",
        (4096, 32, 32, 8, 14336),
        32768,
        model_type="mixtral",
        theta=1000000.0,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "qwen3-30b-a3b": _llama(
        "Qwen/Qwen3-30B-A3B",
        model_type="qwen3_moe",
        vocab=151936,
        hidden=2048,
        layers=48,
        heads=32,
        kv_heads=4,
        intermediate=6144,
        positions=40960,
        theta=1000000.0,
        rms_norm_eps=1e-6,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
    ),
    "pythia-70m": _pythia("70m", 512, 6, 8),
    "pythia-160m": _pythia("160m", 768, 12, 12),
    "pythia-410m": _pythia("410m", 1024, 24, 16),
    "pythia-1b": _pythia("1b", 2048, 16, 8),
    "pythia-1.4b": _pythia("1.4b", 2048, 24, 16),
    "pythia-2.8b": _pythia("2.8b", 2560, 32, 32),
    "pythia-6.9b": _pythia("6.9b", 4096, 32, 32, vocab=50432),
    "pythia-12b": _pythia("12b", 5120, 36, 40, vocab=50688),
}
