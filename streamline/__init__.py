"""Layer pruning of language models: one engine, many methods, paired evaluation.

The package names only what every user needs and imports nothing heavy. Everything else is
reached through its module::

    from streamline.sources.models import load_model
    from streamline.engine.decoder import Decoder
"""

from __future__ import annotations

from importlib.metadata import version

from streamline.errors import (
    AssetError,
    ConfigError,
    PlanError,
    StreamlineError,
    UnknownNameError,
    UnsupportedModelError,
)

__all__ = [
    "AssetError",
    "ConfigError",
    "PlanError",
    "StreamlineError",
    "UnknownNameError",
    "UnsupportedModelError",
    "__version__",
    "register",
]

__version__ = version("streamline-bench")


def register() -> None:
    """Let ``AutoModelForCausalLM.from_pretrained`` load every checkpoint of this package.

    Needed only for those whose layers are not all plain (FFN, SwiGLU, ...); with it they load
    without ``trust_remote_code``. Imports torch and transformers.
    """
    from streamline.modeling.modeling_streamline import register as register_classes

    register_classes()
