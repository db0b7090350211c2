"""Layer pruning of language models: one engine, many methods, paired evaluation.

Example::

    import streamline as sl

    model, tokenizer = sl.load("smollm2-135m-instruct")               # or any loaded model
    short = sl.prune(model, tokenizer, "shortgpt", sparsity=0.25)
    result = sl.evaluate({"dense": model, "shortgpt": short}, tokenizer, limit=50)
    print(result)

Importing the package loads neither torch nor transformers; a name is looked up when it is used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from streamline.errors import (
    AssetError,
    ConfigError,
    PlanError,
    StreamlineError,
    UnknownNameError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from streamline import methods
    from streamline.api.evaluation import compare
    from streamline.api.functions import evaluate, load, prune, session
    from streamline.api.listing import list_methods, list_tasks
    from streamline.calibration import Calibration
    from streamline.evaluation.prompting import Prompting
    from streamline.method import DepthMethod, Method
    from streamline.modeling.modeling_streamline import register
    from streamline.plan import Plan, Span
    from streamline.training.distillation.settings import DistillationSettings
    from streamline.training.lora_recipe import LoraSettings
    from streamline.training.student import Recipe

__all__ = [
    "AssetError",
    "Calibration",
    "ConfigError",
    "DepthMethod",
    "DistillationSettings",
    "LoraSettings",
    "Method",
    "Plan",
    "PlanError",
    "Prompting",
    "Recipe",
    "Span",
    "StreamlineError",
    "UnknownNameError",
    "UnsupportedModelError",
    "__version__",
    "compare",
    "evaluate",
    "list_methods",
    "list_tasks",
    "load",
    "methods",
    "prune",
    "register",
    "session",
]

__version__ = version("streamline-bench")

_LAZY = {
    "Calibration": "streamline.calibration",
    "DepthMethod": "streamline.method",
    "DistillationSettings": "streamline.training.distillation.settings",
    "LoraSettings": "streamline.training.lora_recipe",
    "Method": "streamline.method",
    "Plan": "streamline.plan",
    "Prompting": "streamline.evaluation.prompting",
    "Recipe": "streamline.training.student",
    "Span": "streamline.plan",
    "compare": "streamline.api.evaluation",
    "evaluate": "streamline.api.functions",
    "list_methods": "streamline.api.listing",
    "list_tasks": "streamline.api.listing",
    "load": "streamline.api.functions",
    "prune": "streamline.api.functions",
    "register": "streamline.modeling.modeling_streamline",
    "session": "streamline.api.functions",
}


def __getattr__(name: str) -> Any:
    """Import the object of a name when it is first used."""
    if name == "methods":
        return import_module("streamline.methods")
    if name not in _LAZY:
        raise AttributeError(f"module 'streamline' has no attribute {name!r}")
    found = getattr(import_module(_LAZY[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return __all__
