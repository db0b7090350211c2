"""Names of models -> weights, tokenizer, config and a fingerprint, wherever they come from.

A name is a short name of `MODELS`, a local folder or a hub id. The embedded default model comes
out of a wheel: its GGUF file is turned once into an ordinary safetensors folder in the cache.
Everything after this module sees a plain ``PreTrainedModel`` in eval mode.

Example::

    model, tokenizer = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    config = load_config("llama2-7b")        # no network: the shape is packaged
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.hashing import content_key, file_hashes
from streamline.sources.embedded import CONVERSION, conversion, converted
from streamline.sources.folders import check_files, check_kind, check_tokenizer, read_json_object
from streamline.sources.hub.commits import model_commit
from streamline.sources.hub.model_files import (
    TOKENIZER_FILES,
    cached_folder,
    fetch_tokenizer,
    fetch_weights,
    model_explained,
    require_access,
)
from streamline.sources.hub.own_code import class_options, code_commits, code_options
from streamline.sources.model_table import MODEL_TABLE
from streamline.sources.names import MODELS, ModelSource, resolve_model
from streamline.sources.wheels import SMOLLM2

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MODELS",
    "ModelSource",
    "check_access",
    "hub_commit",
    "load_config",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "model_fingerprint",
    "planned_model",
    "resolve_model",
    "weights_folder",
]

_DECIDING = ("generation_config.json", "*.py", *TOKENIZER_FILES)
"""Files beside config and weights that decide what a model computes of a text."""


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model; for most short names without any network.

    Args:
        name: As `resolve_model`.
        trust_remote_code: Run the config class a repository brings along. Off by default.

    Returns:
        The config. For a packaged shape it holds what decides sizes, not every setting.

    Raises:
        AssetError: If the model is unknown, gated, not reachable, or its folder is missing or
            contradicts itself.
        UnsupportedModelError: If it is no decoder with plain weights.
    """
    from transformers import CONFIG_MAPPING

    row = MODEL_TABLE.get(name)
    if row is not None and row.model_type is not None:
        config: PretrainedConfig = CONFIG_MAPPING[row.model_type](**row.shape)
        config.name_or_path = row.hub_id or name
        return config
    source = resolve_model(name)
    return _read_config(source, _pretrained(source), trust_remote_code)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end token.

    Raises:
        AssetError: As `load_model`.
    """
    from transformers import AutoTokenizer

    from streamline.modeling.modeling_streamline import register

    source = resolve_model(name)
    register()
    place = _pretrained(source)
    place |= code_options(source, *place.values(), trust_remote_code=trust_remote_code)
    with model_explained(source):
        if source.kind == "hub":
            fetch_tokenizer(source.location, place["revision"])
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place)
    if source.revision is not None:  # by which its files are found again
        tokenizer.name_or_path = source.known_as
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
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
        AssetError: If the model is unknown, gated, not reachable, its folder is missing or its
            weights are not exactly those of its config, or its wheel cannot be fetched.
        UnsupportedModelError: If it is no decoder with plain weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from streamline.sources.accounting import check_range, check_report
    from streamline.sources.weights import WeightSource

    source = resolve_model(name)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    folder = weights_folder(name)
    empty = _accounted(source, folder, trust_remote_code)
    check_tokenizer(tokenizer, empty.get_input_embeddings().num_embeddings, source.name)  # type: ignore[arg-type]
    loader: Any = AutoModelForCausalLM
    with model_explained(source, hub=False):
        model, report = loader.from_pretrained(
            str(folder),
            dtype=dtype,
            device_map=device_map,
            **code_options(source, str(folder), trust_remote_code=trust_remote_code),
            output_loading_info=True,
        )
        check_report(folder, report)
        if model.dtype == torch.float16:
            with WeightSource(folder) as weights:
                check_range(model, weights)
    model.config.name_or_path = _known_as(source)
    if device_map is None:
        model.to(device)
    model.eval()
    return model, tokenizer


def planned_model(name: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model without weights (meta device), to count and plan with; no network is needed.

    Where its weights are on this machine they are held against its config, as in loading.

    Args:
        name: As `resolve_model`.
        trust_remote_code: Run the classes a repository brings along. Off by default.

    Raises:
        AssetError: As `load_model`.
        UnsupportedModelError: As `load_model`.
    """
    source = resolve_model(name)
    folder = local_folder(name)
    if folder is None:
        return _without_weights(source, load_config(name, trust_remote_code=trust_remote_code),
                                trust_remote_code)  # fmt: skip
    model = _accounted(source, folder, trust_remote_code)
    if source.kind == "folder":
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        check_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, source.name)  # type: ignore[arg-type]
    return model


def model_fingerprint(name: str, *, trust_remote_code: bool = False) -> str:
    """A key for a model's content: it changes when what decides its numbers does.

    A folder is keyed by its config, the weights that are read, its tokenizer, generation settings
    and code; a packaged model by its wheel; a hub model by its commit. Where a model's own code
    runs, that and the commit of what lies elsewhere is in it too.

    Args:
        name: As `resolve_model`.
        trust_remote_code: Whether its own code runs.

    Returns:
        64 hexadecimal digits.

    Raises:
        AssetError: If the model cannot be found, or its files contradict each other.
    """
    from streamline.sources.weights import WeightSource

    source = resolve_model(name)
    if source.kind == "wheel":
        return content_key(["wheel", SMOLLM2.sha256, source.location, CONVERSION])
    if source.kind == "hub":
        place = (source.location, _commit(source))
        own = code_commits(source, *place) if trust_remote_code else None
        return content_key(["hub", *place, *([] if own is None else [own])])
    folder = Path(source.location)
    check_files(folder)
    with WeightSource(folder) as weights:
        files = [*weights.files, *_deciding(folder)]
    hashes = file_hashes(files)
    config = read_json_object(folder / "config.json")
    named = {path.relative_to(folder).as_posix(): hashes[path] for path in files}
    own = code_commits(source, str(folder)) if trust_remote_code else None
    return content_key(["folder", config, named, *([] if own is None else [own])])


def hub_commit(name: str) -> str | None:
    """The commit at which a model on the hub is read; None for all others.

    Args:
        name: As `resolve_model`.

    Raises:
        AssetError: If the model is unknown, gated or not reachable.
    """
    source = resolve_model(name)
    return _commit(source) if source.kind == "hub" else None


def check_access(name: str) -> None:
    """Find out whether a model's files can be had, without fetching its weights.

    Args:
        name: As `resolve_model`.

    Raises:
        HubError: If the hub has no such model, or does not give it, or cannot be reached.
    """
    source = resolve_model(name)
    if source.kind == "hub":
        with model_explained(source):
            require_access(source.location, source.revision)


def weights_folder(name: str) -> Path:
    """The local folder with a model's config and weights; a hub model is fetched into it.

    Args:
        name: As `resolve_model`.

    Raises:
        AssetError: If the model is unknown, gated or not reachable.
    """
    source = resolve_model(name)
    if source.kind == "wheel":
        return converted()
    if source.kind == "folder":
        return Path(source.location)
    with model_explained(source):
        return fetch_weights(source.location, source.revision)


def local_folder(name: str) -> Path | None:
    """The folder of a model whose config and weights are on this machine, else None.

    Args:
        name: As `resolve_model`.
    """
    source = resolve_model(name)
    if source.kind == "wheel":
        return converted() if conversion().is_dir() else None
    if source.kind == "folder":
        return Path(source.location)
    return cached_folder(source.location, source.revision)


def _pretrained(source: ModelSource) -> dict[str, Any]:
    """Arguments for ``from_pretrained``: a folder, or a hub id at one commit."""
    if source.kind == "wheel":
        return {"pretrained_model_name_or_path": str(converted())}
    if source.kind == "folder":
        check_files(Path(source.location))
        return {"pretrained_model_name_or_path": source.location}
    return {"pretrained_model_name_or_path": source.location, "revision": _commit(source)}


def _commit(source: ModelSource) -> str:
    with model_explained(source):
        return model_commit(source.location, source.revision)


def _read_config(source: ModelSource, place: dict[str, Any], trust: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    from streamline.modeling.modeling_streamline import register

    register()
    options = code_options(source, *place.values(), trust_remote_code=trust)
    with model_explained(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(**place, **options)
    check_kind(config, repr(source.name))
    return config


def _accounted(source: ModelSource, folder: Path, trust: bool) -> PreTrainedModel:
    """A folder's model without weights, after its weights were held against its config."""
    from streamline.sources.accounting import account, check_layers
    from streamline.sources.weights import WeightSource

    check_files(folder)
    place = {"pretrained_model_name_or_path": str(folder)}
    config = _read_config(source, place, trust)
    with WeightSource(folder) as weights:
        check_layers(config, weights)
        model = _without_weights(source, config, trust)
        account(model, weights)
    return model


def _without_weights(source: ModelSource, config: PretrainedConfig, trust: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    config.name_or_path = _known_as(source)
    options = class_options(config, source, trust_remote_code=trust)
    with model_explained(source, hub=False), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    return model


def _known_as(source: ModelSource) -> str:
    """What a config says where its model is from; not where a cache happens to lie."""
    return source.name if source.kind == "wheel" else source.known_as


def _deciding(folder: Path) -> Iterator[Path]:
    """Files beside config and weights that belong to a model's content."""
    return filter(Path.is_file, sorted({p for name in _DECIDING for p in folder.glob(name)}))
