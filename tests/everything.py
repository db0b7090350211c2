"""All that a command may need, imported once by a process whose children are copies of it."""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["import_everything"]

_LIBRARIES = (
    "accelerate", "datasets", "filelock", "jinja2", "lm_eval.api.metrics",
    "lm_eval.tasks", "lm_eval.models.huggingface", "numpy", "pandas", "peft", "pyarrow.parquet",
    "rich.live", "rouge_score.rouge_scorer", "sacrebleu",
    "safetensors.torch", "scipy.stats", "torch", "transformers.models.llama.modeling_llama",
    "typer.rich_utils",
)  # fmt: skip


def import_everything() -> None:
    """Import libraries and the whole package, but what measures its speed."""
    import streamline

    for library in _LIBRARIES:
        importlib.import_module(library)
    for module in pkgutil.walk_packages(streamline.__path__, "streamline."):
        if ".benchmarks." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
