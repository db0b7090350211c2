"""The model class of checkpoints whose layers are not all the base model's own.

This file and the others of :data:`FILES` stand alone and are copied into such checkpoints. Their
``config.json`` keeps every field of the base model, with ``model_type`` ``"streamline"``, the true
type in ``base_model_type``, and under ``streamline`` one spec per layer and what layers were built
with at their original index. Loading gives an object of the base model's class
(``LlamaForCausalLM``, ...) with its layers exchanged after the specs, so tying, generation,
``device_map`` and ``dtype`` work as for the base model; in memory its config has the base model's
type.

Example:
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)      # without the package
    register(); AutoModelForCausalLM.from_pretrained(folder)                  # with it
"""

from __future__ import annotations

import ast
import functools
import inspect
import shutil
import textwrap
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .modeling_layers import LayerModule, Spec, build
from .modeling_narrow import SlicedLayer, build_shell
from .modeling_state import set_state
from .modeling_sublayers import number_caches

MODEL_TYPE = "streamline"
#: Before version 5 other families return tuples, models ask layers for their kind of attention,
#: and tied weights are named by lists.
BEFORE_5 = int(transformers.__version__.split(".")[0]) < 5
#: The files that a checkpoint needs to be loaded without this package.
FILES = (
    "modeling_streamline.py",
    "modeling_layers.py",
    "modeling_narrow.py",
    "modeling_state.py",
    "modeling_sublayers.py",
)
#: Which classes of these files transformers is to use.
AUTO_MAP = {
    "AutoConfig": "modeling_streamline.StreamlineConfig",
    "AutoModel": "modeling_streamline.StreamlineModel",
    "AutoModelForCausalLM": "modeling_streamline.StreamlineForCausalLM",
}
#: Classes of layers that stay on one device.
UNSPLIT = ("FFN", "SwiGLU", "LinearMap", SlicedLayer.__name__)


class StreamlineConfig(PretrainedConfig):
    """The entry for ``AutoConfig``: reading a config gives one of the base model's class."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config of the class that :func:`config_class` gives for ``base_model_type``."""
        if "base_model_type" not in config_dict:
            raise ValueError(
                "a config of type 'streamline' names its base_model_type; this one does not: "
                f"{sorted(config_dict)}"
            )
        return config_class(config_dict["base_model_type"]).from_dict(config_dict, **kwargs)


class _BaseConfig:
    """Added to a base model's config: it is written as ``streamline``, read as its own type."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a written config without its two type fields, which the class has."""
        fields = {
            key: value
            for key, value in config_dict.items()
            if key not in ("model_type", "base_model_type")
        }
        return super().from_dict(fields, **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """All fields, with the type under which the checkpoint is found again."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        types = {"model_type": MODEL_TYPE, "base_model_type": type(self).model_type}  # type: ignore[attr-defined]
        return fields | types | {"auto_map": dict(AUTO_MAP)}


class _BaseModel:
    """Added to a base model's class: layers by spec, shared layers, strict loading, its files."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, config)  # type: ignore[arg-type]
        declare_shared(self)  # type: ignore[arg-type]
        self.post_init()  # type: ignore[attr-defined]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which before version 5 knows of no layers that share weights."""
        super().tie_weights(*args, **kwargs)  # type: ignore[misc]
        if BEFORE_5:
            for name, original in self.__dict__.get("_shared_keys", {}).items():
                path, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(path), leaf, self.get_parameter(original))  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a missing, unexpected or misshapen tensor is an error.

        Raises:
            ValueError: If the folder's tensors are not exactly the model's.
        """
        wanted = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        heads = [key.rpartition(".")[0] for key in getattr(cls, "_tied_weights_keys", None) or ()]
        if BEFORE_5 and heads and "lm_head" not in heads:  # version 5 renamed GPT-NeoX's
            kwargs["key_mapping"] = {r"^lm_head\.": f"{heads[0]}."}
        model, info = super().from_pretrained(name, *args, **kwargs)  # type: ignore[misc]
        wrong = {key: sorted(map(str, info[key])) for key in info if key.endswith("_keys")}
        if headless(model):
            prefix = f"{model.base_model_prefix}."
            spare = [key for key in wrong["unexpected_keys"] if key.startswith(prefix)]
            wrong["unexpected_keys"] = spare  # the head's are not wanted
        wrong = {key: names for key, names in wrong.items() if names}
        if wrong:
            raise ValueError(f"the tensors in {name} are not those of its config: {wrong}")
        return (model, info) if wanted else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the files from which the folder is loaded again."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        for name in FILES:
            shutil.copyfile(Path(__file__).with_name(name), Path(save_directory) / name)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The base model's tied weights and those of layers with the weights of another one."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)  # type: ignore[misc]
        return {**tied, **self.__dict__.get("_shared_keys", {})}

    def _adjust_bias(self, output_embeddings: nn.Module, input_embeddings: Any) -> None:
        """Fit the head's bias to a tied embedding; shared layers have no head to fit."""
        if output_embeddings is self.get_output_embeddings():  # type: ignore[attr-defined]
            super()._adjust_bias(output_embeddings, input_embeddings)  # type: ignore[misc]


def headless(model: Any) -> bool:
    """Whether a model is the base model alone, without a head for language."""
    return not hasattr(model, model.base_model_prefix)


def own_path(model: Any, path: str) -> str:
    """A path from a model with a head, as it is from this one."""
    return path.removeprefix(f"{model.base_model_prefix}.") if headless(model) else path


def layer_list(model: nn.Module, config: Any) -> nn.ModuleList:
    """The list of layers of a model, found by the path in its config."""
    layers = model.get_submodule(own_path(model, config.streamline["layers_path"]))
    assert isinstance(layers, nn.ModuleList)
    return layers


def install(model: nn.Module, config: Any) -> None:
    """Exchange a model's layers after its config's specs.

    Args:
        model: A fresh model of the base class, with one standard layer per spec.
        config: Its config, with the field ``streamline``.

    Raises:
        ValueError: If there is not one spec per layer, or a kind is unknown.
    """
    specs: list[Spec] = config.streamline["layers"]
    layers = layer_list(model, config)
    if len(specs) != len(layers):
        raise ValueError(f"{len(specs)} layer specs for a model of {len(layers)} layers")
    pair = config.streamline["tuple_output"]
    if BEFORE_5 and len(layers):
        pair = returns_tuple(type(layers[0]).forward)
    for index, spec in enumerate(specs):
        fresh = layers[index]
        layer = build(spec, config, fresh)
        if BEFORE_5 and hasattr(fresh, "attention_type"):
            layer.attention_type = fresh.attention_type
        for module in layer.modules():
            if isinstance(module, LayerModule):
                module.tuple_output = pair
        layers[index] = layer
    number_caches(list(layers), config)
    for index, state in config.streamline.get("state", {}).items():
        set_state(layers[int(index)], state)
    if "shell" in config.streamline:
        shell = dict(config.streamline["shell"])
        shell["embeddings"] = {own_path(model, at): d for at, d in shell["embeddings"].items()}
        at, *rest = shell["norm"]
        shell["norm"] = [own_path(model, at), *rest]
        if headless(model):
            del shell["head"]
        build_shell(model, shell)


def returns_tuple(function: Any) -> bool:
    """Whether a function returns a tuple, or a name to which it gave one, by its source."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    nodes = list(ast.walk(ast.parse(source)))
    made = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return any(
        isinstance(node.value, ast.Tuple)
        or (isinstance(node.value, ast.Name) and node.value.id in made)
        for node in nodes
        if isinstance(node, ast.Return)
    )


def shared_keys(model: nn.Module) -> dict[str, str]:
    """For each tensor of a layer with another layer's weights, the name of the original."""
    config: Any = model.config
    path = own_path(model, config.streamline["layers_path"])
    pairs = {}
    for index, spec in enumerate(config.streamline["layers"]):
        if spec["kind"] == "shared":
            for name, _ in layer_list(model, config)[index].named_parameters():
                pairs[f"{path}.{index}.{name}"] = f"{path}.{spec['of']}.{name}"
    return pairs


def declare_shared(model: PreTrainedModel) -> None:
    """Declare which layers of a model share weights, for tying, saving and loading."""
    pairs = shared_keys(model)
    model.__dict__["_shared_keys"] = pairs
    if BEFORE_5:
        model.__dict__["_tied_weights_keys"] = [*(type(model)._tied_weights_keys or ()), *pairs]
        return
    model.__dict__["_tied_weights_keys"] = {**(type(model)._tied_weights_keys or {}), **pairs}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **pairs}


@functools.cache
def config_class(base_type: str) -> type[PretrainedConfig]:
    """The config class for checkpoints on a base model type, made once.

    Raises:
        ValueError: If transformers does not know the type.
    """
    if base_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model type {base_type!r}")
    base = CONFIG_MAPPING[base_type]
    name = f"Streamline{base.__name__}"
    made = type(name, (_BaseConfig, base), {"__module__": __name__, "__doc__": base.__doc__})
    globals()[name] = made
    AutoModel.register(made, StreamlineModel, exist_ok=True)
    AutoModelForCausalLM.register(made, StreamlineForCausalLM, exist_ok=True)
    return made


@functools.cache
def model_class(base_type: str, *, head: bool = True) -> type[PreTrainedModel]:
    """The model class for checkpoints on a base model type, made once.

    Args:
        base_type: The type of the base model.
        head: Whether it has the base model's head for language.
    """
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING if head else MODEL_MAPPING
    base: Any = mapping[CONFIG_MAPPING[base_type]]
    name = f"Streamline{base.__name__}"
    fields = {
        "__module__": __name__,
        "__doc__": base.__doc__,
        "config_class": config_class(base_type),
        "_no_split_modules": [*(base._no_split_modules or ()), *UNSPLIT],
    }
    made = type(name, (_BaseModel, base), fields)
    globals()[name] = made
    return made


class StreamlineForCausalLM:
    """The entry for ``AutoModelForCausalLM``: it gives an object of the base model's class."""

    head = True

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a checkpoint; the arguments are those of ``PreTrainedModel.from_pretrained``."""
        if config is None:
            config = StreamlineConfig.from_pretrained(name)
        made = model_class(type(config).model_type, head=cls.head)
        return made.from_pretrained(name, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        return model_class(type(config).model_type, head=cls.head)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Called by transformers when the class comes from a checkpoint; there is nothing to do."""


class StreamlineModel(StreamlineForCausalLM):
    """The entry for ``AutoModel``: the base model without its head."""

    head = False


def register() -> None:
    """Let ``AutoConfig`` and ``AutoModelForCausalLM`` load these folders without remote code."""
    AutoConfig.register(MODEL_TYPE, StreamlineConfig, exist_ok=True)


def with_layers(model: PreTrainedModel, streamline: dict[str, Any]) -> PreTrainedModel:
    """Turn a model whose layers were exchanged into one that saves and loads as such.

    Args:
        model: A model of a class of transformers; its class and its config's class are changed.
        streamline: The config's field: ``layers`` (one spec per layer), ``layers_path``,
            ``tuple_output``, ``shell`` where embeddings, final norm and head are not the base
            model's own, and ``state`` (index of a layer -> what it holds, see `modeling_state`).

    Returns:
        The same model.
    """
    base_type = type(model.config).model_type
    model.config.__class__ = config_class(base_type)
    model.config.streamline = streamline
    model.config.auto_map = dict(AUTO_MAP)
    model.__class__ = model_class(base_type)
    declare_shared(model)
    model.config.architectures = [type(model).__name__]
    return model
