"""What pruning methods are built from, and LLM-Streamline itself.

The variants of LLM-Streamline are here by name and imported when they are used::

    sl.methods.StreamlineLayer(init="mean")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamline.methods.llm_streamline import (
        StreamlineFFN,
        StreamlineLayer,
        StreamlineNone,
        StreamlineSwiGLU,
    )

__all__ = ["StreamlineFFN", "StreamlineLayer", "StreamlineNone", "StreamlineSwiGLU"]


def __getattr__(name: str) -> Any:
    """Import a variant when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("streamline.methods.llm_streamline"), name)
