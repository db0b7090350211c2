"""Which models must generate by themselves, and why.

Example::

    unsupported(decoder, longest=2048)      # None, or "its generation settings set num_beams"
"""

from __future__ import annotations

from streamline.engine.decoder import Decoder
from streamline.evaluation.scoring.tree_length import tree_length

__all__ = ["unsupported", "unsupported_attention"]

_HARMLESS = {
    "bos_token_id", "decoder_start_token_id", "do_sample", "eos_token_id", "max_length",
    "max_new_tokens", "min_p", "pad_token_id", "temperature", "top_k", "top_p",
    "transformers_version", "typical_p", "use_cache", "cache_implementation", "_from_model_config",
}  # fmt: skip
_NEUTRAL = {"length_penalty": 1.0, "num_beams": 1, "repetition_penalty": 1.0}
"""Generation settings that leave the likeliest token what it is: any value, or just this one."""


def unsupported(decoder: Decoder, longest: int) -> str | None:
    """Why a model must generate by itself, or None if it need not.

    Args:
        decoder: The model.
        longest: Tokens of the longest prompt with its text.
    """
    attention = unsupported_attention(decoder, longest)
    if attention is not None:
        return attention
    settings = decoder.model.generation_config
    given = {} if settings is None else settings.to_diff_dict()
    changing = sorted(
        name
        for name, value in given.items()
        if name not in _HARMLESS
        and value not in (None, False)
        and not (name in _NEUTRAL and _NEUTRAL[name] == value)
    )
    if changing:
        return f"its generation settings set {', '.join(changing)}"
    return None


def unsupported_attention(decoder: Decoder, longest: int) -> str | None:
    """Why a model's attention cannot read from a shared cache, or None if it can.

    Args:
        decoder: The model.
        longest: Tokens of the longest prompt with its text.
    """
    limit = tree_length(decoder)
    if limit == 0:
        return "its attention supports no mask but its own"
    if limit is not None and longest > limit:
        return f"its attention changes beyond {limit} tokens, and there may be {longest}"
    return None
