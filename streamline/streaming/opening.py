"""Opening a model whose layers are to be streamed, and which methods can work on one.

Example::

    decoder, tokenizer = load_streamed("llama2-70b", device="cuda", dtype="bfloat16")
    with decoder.source:
        calibration = measure(decoder, batches)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from streamline.distributed.team import world_size
from streamline.errors import UnsupportedModelError
from streamline.files import cache_dir
from streamline.method import DepthMethod, Method
from streamline.sources.accounting import check_layers
from streamline.sources.folders import check_kind, check_tokenizer
from streamline.sources.hub.model_files import model_explained
from streamline.sources.hub.own_code import class_options
from streamline.sources.models import load_config, load_tokenizer, weights_folder
from streamline.sources.names import ModelSource
from streamline.sources.weights import WeightSource
from streamline.streaming.decoder import STATE_BYTES, StreamedDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["empty_model", "load_streamed", "open_streamed", "refusal"]


class _EmptyOnMeta(TorchFunctionMode):
    """Memory that a constructor allocates without filling it is that of parameters."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def empty_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A model in eval mode whose parameters need no memory and whose buffers are as they must be.

    Buffers that no checkpoint holds (rotary frequencies, causal masks) are computed by the model's
    own constructors on the CPU; parameters go to the meta device before they need any memory.

    Args:
        config: The model's config.
        dtype: Dtype of the parameters.
        trust_remote_code: Whether a model's own code may run.
        **options: What else ``from_config`` is told, such as ``code_revision``.

    Raises:
        UnsupportedModelError: If a buffer was left without a value.
    """
    with _EmptyOnMeta(), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code, **options
        )
    for module in model.modules():  # what was filled at once is small: norms, biases
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    model.tie_weights()
    without = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if without:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be streamed: its buffer {without[0]!r} is not filled "
            "by its constructor; load it whole, without --stream"
        )
    model.eval().requires_grad_(False)
    return model


def open_streamed(
    folder: Path,
    config: PretrainedConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    state_bytes: int = STATE_BYTES,
    scratch: Path | None = None,
    trust_remote_code: bool = False,
) -> StreamedDecoder:
    """Open a folder's model without reading its layers.

    Args:
        folder: Holds the weights.
        config: The model's config.
        device: Where the weights compute.
        dtype: Dtype of the weights in memory; ``"auto"`` for the config's.
        state_bytes: Most bytes of waiting hidden states in memory.
        scratch: Folder for those beyond; None for the package's cache.
        trust_remote_code: Whether a model's own code may run.

    Raises:
        AssetError: If there are no weights or they are not exactly this config's.
        UnsupportedModelError: If the model is quantised or its family is unknown.
    """
    check_kind(config, repr(str(folder)))
    source = WeightSource(folder)
    try:
        check_layers(config, source)
        if dtype == "auto":
            dtype = getattr(config, "dtype", None) or _stored_dtype(source)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        assert isinstance(dtype, torch.dtype)
        here = ModelSource(name=str(folder), kind="folder", location=str(folder))
        with model_explained(here):
            options = class_options(config, here, trust_remote_code=trust_remote_code)
            model = empty_model(config, dtype, **options)
        return StreamedDecoder(
            model,
            source,
            device=device,
            state_bytes=state_bytes,
            scratch=scratch or cache_dir() / "streaming",
        )
    except BaseException:
        source.close()
        raise


def _stored_dtype(source: WeightSource) -> torch.dtype:
    """Dtype of the first weight that is a number with a point, as in loading whole."""
    dtypes = (source[name].dtype for name in source)
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def load_streamed(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    state_bytes: int = STATE_BYTES,
    trust_remote_code: bool = False,
) -> tuple[StreamedDecoder, PreTrainedTokenizerBase]:
    """As :func:`streamline.sources.models.load_model`, for models larger than memory.

    Args:
        name: Alias, hub id or local folder.
        device: Where the weights compute.
        dtype: Dtype of the weights in memory.
        state_bytes: Most bytes of waiting hidden states in memory.
        trust_remote_code: Whether a model's own code may run.

    Returns:
        The decoder and the tokenizer.

    Raises:
        AssetError: If the model cannot be had, or its weights are not exactly its config's.
        UnsupportedModelError: As :func:`open_streamed`.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    folder = weights_folder(name)
    config = load_config(str(folder), trust_remote_code=trust_remote_code)
    decoder = open_streamed(
        folder,
        config,
        device=device,
        dtype=dtype,
        state_bytes=state_bytes,
        trust_remote_code=trust_remote_code,
    )
    check_tokenizer(tokenizer, decoder.model.get_input_embeddings().num_embeddings, name)  # type: ignore[arg-type]
    return decoder, tokenizer


def refusal(method: Method, recovery: str = "none", processes: int | None = None) -> str | None:
    """Why a method, or what is to follow it, cannot work on a streamed model; None if it can.

    A method can if it decides by the statistics of one pass, or states that it needs nothing else
    (:attr:`streamline.method.Method.supports_streaming`). Several processes train together, each
    with a part of the model (:mod:`streamline.training.parts.frozen`).

    Args:
        method: The method.
        recovery: What is to follow.
        processes: How many work together; None for as many as there are.
    """
    own = [
        name
        for name in ("calibrate", "prune")
        if getattr(type(method), name) not in (getattr(Method, name), getattr(DepthMethod, name))
    ]
    trains = recovery if recovery != "none" else method.name if method.trains else None
    if trains is not None and (processes or world_size()) == 1:
        return (
            f"{trains} trains through a model whose layers are streamed; launch several processes "
            "(torchrun), each with a part of it, or run without --stream"
        )
    if own and not method.supports_streaming:
        return (
            f"{method.name} needs more of the model than the statistics of one pass, and its "
            "layers are streamed; run it without --stream"
        )
    return None
