"""Folders of models before their weights are read: what is refused, which files hold the weights.

One safetensors file, or shards with an index that names each tensor's file; where there are
neither, the older files of ``torch.save``. A folder that can be read in two ways is refused.

Example::

    check_files(folder)                  # an adapter, a broken config.json
    check_kind(config, "t5-small")       # UnsupportedModelError: ... an encoder and a decoder
    files, index = layout(folder)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import AssetError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "PICKLED",
    "SAFE",
    "check_files",
    "check_kind",
    "check_tokenizer",
    "layout",
    "read_json_object",
    "refuse_adapter",
]

SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of one file and of the index of several, the kind that is preferred first."""
_WANTED = "give a decoder-only language model"
_PARTS = ("vision_config", "audio_config", "speech_config", "image_config")


def check_files(folder: Path) -> None:
    """Refuse a folder that is not a model's, before transformers reads it.

    Raises:
        AssetError: If its ``config.json`` is not a JSON object with a model type, or contradicts
            itself or the files that are read, or its generation settings are no JSON object.
        UnsupportedModelError: If it is an adapter.
    """
    refuse_adapter(folder)
    if (folder / "generation_config.json").is_file():  # transformers would go on without it
        read_json_object(folder / "generation_config.json")
    path = folder / "config.json"
    config = read_json_object(path)
    if not config.get("model_type") and not config.get("auto_map"):
        raise AssetError(
            f"{path} names no model_type, so no one can say what its model is; take the config "
            "that belongs to the weights"
        )
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    types = config.get("layer_types")
    if isinstance(types, list) and isinstance(layers, int) and len(types) != layers:
        raise AssetError(
            f"{path} contradicts itself: layer_types names {len(types)} layers, num_hidden_layers "
            f"is {layers}. Make them agree with the weights, or remove layer_types where all "
            "layers are of one kind"
        )
    if config.get("transformers_weights"):
        raise AssetError(
            f"{path} names its weights itself (transformers_weights: "
            f"{config['transformers_weights']!r}), which not every reader follows; name them "
            "model.safetensors and remove the field"
        )


def refuse_adapter(folder: Path) -> None:
    """Refuse what peft saved beside a model, or over one.

    Raises:
        UnsupportedModelError: If the folder holds an adapter.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json_object(adapter).get("base_model_name_or_path")
        raise UnsupportedModelError(
            f"{folder} is an adapter of {base!r}, not a whole model; merge it first: "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload()"
            ".save_pretrained(NEW_FOLDER), and give the new folder"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        AssetError: If the file holds anything else or cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise AssetError(f"{path} is not JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise AssetError(f"{path} holds no JSON object; fetch the model again")
    return found


def check_kind(config: PretrainedConfig, shown: str) -> None:
    """Refuse what has no plain decoder layers to prune.

    Args:
        config: The model's config.
        shown: The model, for the message.

    Raises:
        UnsupportedModelError: If the model is quantised, an encoder, an encoder with a decoder or
            multimodal, or has no layers.
        AssetError: If its padding token has no row in its embedding.
    """
    from transformers.models.auto import modeling_auto

    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        found = quantised if isinstance(quantised, dict) else vars(quantised)
        kind = found.get("quant_method") or "an unknown method"
        raise UnsupportedModelError(
            f"Model {shown} holds weights quantised with {getattr(kind, 'value', kind)}; layers "
            "are compared, merged and trained on plain numbers. Take the model that it was made "
            "from, or load it with transformers, call model.dequantize() and save_pretrained, "
            "and give that folder"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"Model {shown} ({config.model_type}) has an encoder and a decoder; {_WANTED}"
        )
    if any(getattr(config, part, None) is not None for part in _PARTS):
        raise UnsupportedModelError(
            f"Model {shown} ({config.model_type}) is multimodal; {_WANTED}: its language model "
            "saved by itself (model.language_model) will do"
        )
    if config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"Model {shown} ({config.model_type}) is an encoder, which does not continue text; "
            f"{_WANTED}"
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise UnsupportedModelError(
            f"Model {shown} has no layers (num_hidden_layers is {layers}); there is nothing to "
            "prune or to measure"
        )
    rows, padding = getattr(config, "vocab_size", None), getattr(config, "pad_token_id", None)
    if isinstance(rows, int) and isinstance(padding, int) and padding >= rows:
        raise AssetError(
            f"The config of model {shown} contradicts itself: pad_token_id is {padding}, "
            f"vocab_size is {rows}. Take the config that belongs to the weights"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, shown: str) -> None:
    """Refuse a tokenizer that texts cannot begin or end with, or of another model.

    Args:
        tokenizer: The model's tokenizer.
        rows: Rows of the embedding.
        shown: The model, for the message.

    Raises:
        AssetError: If it has neither a begin nor an end token, or a token of its vocabulary, or
            one that it begins, ends or pads with, lies beyond the embedding.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise AssetError(
            f"The tokenizer of {shown} has neither a token that begins a text nor one that ends "
            "it, so nothing can be scored without a context; name its bos_token or eos_token in "
            "tokenizer_config.json"
        )
    own = {"begin": tokenizer.bos_token_id, "end": tokenizer.eos_token_id,
           "padding": tokenizer.pad_token_id}  # fmt: skip
    beyond = [f"its {use} token is {n}" for use, n in own.items() if n is not None and n >= rows]
    if tokenizer.vocab_size > rows:
        beyond.insert(0, f"its vocabulary has {tokenizer.vocab_size} tokens")
    if beyond:
        raise AssetError(
            f"The tokenizer of {shown} is not of this model, whose embedding has {rows} rows: "
            f"{', '.join(beyond)}. Take tokenizer and weights of one model, or resize the "
            "embedding (model.resize_token_embeddings) and save both"
        )


def layout(folder: Path) -> tuple[list[Path], tuple[Path, dict[str, Path]] | None]:
    """The files of a folder's weights, and its index if there is one.

    Returns:
        The files, an index last; and the index with the file of each tensor, or None.

    Raises:
        AssetError: If there are no weights, one file and shards lie side by side, or the index is
            damaged or names files elsewhere.
    """
    for single, name in (SAFE, PICKLED):
        whole, index = folder / single, folder / name
        if index.is_file():
            shards = _index(index)
            files = list(dict.fromkeys(shards.values()))
            if not whole.is_file():
                return [*files, index], (index, shards)
            if any(file.is_file() for file in files if file != whole):
                raise AssetError(
                    f"{folder} holds both {single} and {name} with the files it names; remove "
                    "those of the model that is not meant"
                )
        if whole.is_file():
            return [whole], None
    kinds = {path.suffix for path in folder.iterdir()} & {".gguf", ".pt", ".pth", ".h5", ".msgpack"}
    other = f" It holds {', '.join(sorted(kinds))} files, which are not read." if kinds else ""
    raise AssetError(
        f"{folder} holds no weights: give a folder with {SAFE[0]}, with shards and {SAFE[1]}, or "
        f"with {PICKLED[0]}, as `save_pretrained` writes them.{other}"
    )


def _index(path: Path) -> dict[str, Path]:
    """Tensor name -> file of a sharded model."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): path.parent / file for name, file in names.items()}
        outside = [file for file in names.values() if Path(file).name != file]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AssetError(f"{path} is not an index of weight files ({error!r})") from error
    if outside or not found:
        named = f"{outside[0]!r}, which is no file beside it" if outside else "no file"
        raise AssetError(f"{path} names {named}; fetch the model again")
    return found
