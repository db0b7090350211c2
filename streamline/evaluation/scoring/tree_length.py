"""How long a sequence in a tree may be, by model; a model that falls back is named in the log.

Example::

    tree_length(decoder)            # None for Llama, 0 for Bloom, 4096 for Mistral-7B v0.1
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from streamline.engine.decoder import Decoder
from streamline.evaluation.scoring.packing import Request

__all__ = ["announce", "tree_length"]

logger = logging.getLogger(__name__)

_named: set[str] = set()


def tree_length(decoder: Decoder) -> int | None:
    """Longest sequence that may be part of a tree; 0 if none may, None if any.

    Attention that looks back a limited distance, and positions that are rescaled for long
    inputs, are exact in a tree only up to that length.
    """
    config = decoder.config
    own_masks = str(getattr(config, "_attn_implementation", "")).startswith(("flash", "flex"))
    if not decoder.family.tree or getattr(config, "alibi", False) or own_masks:
        return 0
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any("sliding" in kind or "chunked" in kind for kind in kinds)
    window = getattr(config, "sliding_window", None) if slides else None
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    rope = getattr(config, "rope_parameters", None) or {}
    rescaled = None
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        rescaled = rope.get(
            "original_max_position_embeddings", getattr(config, "max_position_embeddings", None)
        )
    limits = [int(limit) for limit in (window, rescaled) if limit is not None]
    return min(limits) if limits else None


def announce(decoder: Decoder, limit: int | None, requests: Sequence[Request]) -> None:
    """Say once when a model falls back to plain sequences."""
    if limit is None or decoder.name in _named:
        return
    longest = max((len(r.context) + len(r.continuation) - 1 for r in requests), default=0)
    if longest > limit:
        _named.add(decoder.name)
        which = "all sequences" if limit == 0 else f"sequences of more than {limit} tokens"
        logger.warning(
            "%s (%s): %s are scored one a row, as its attention supports no tree mask there",
            decoder.name,
            decoder.family.name,
            which,
        )
