"""Checkpoints: a pruned model as a folder, and the proof that the folder holds it.

A model whose layers are all plain layers of its family becomes an ordinary Hugging Face folder. Any
other folder carries a copy of the files that its layers need and loads with this package, or
without it through ``trust_remote_code``. Beside the weights lie the source's tokenizer files,
``README.md`` (its card), ``plan.json``, ``provenance.json`` and ``self_test.safetensors``: a few
tokens with what the layers of the model in memory made of them, its logits and its continuation.

Example:
    save(pruned, decoder, tokenizer, "out/checkpoint", {"method": repr(method)})
    verify("out/checkpoint")                       # in a fresh process, without this package
    model, tokenizer, info = load("out/checkpoint")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from streamline import __version__
from streamline.checkpoints.card import write_card
from streamline.checkpoints.described import describe
from streamline.checkpoints.folder import appearing, require_free, target_folder
from streamline.checkpoints.formats.form import form_of_config
from streamline.checkpoints.formats.serving import serves_in
from streamline.checkpoints.info import PLAN, PROVENANCE, CheckpointInfo, read_info
from streamline.checkpoints.portable import (
    add_older_keys,
    has_tokenizer,
    write_tokenizer,
)
from streamline.checkpoints.self_test import (
    SELF_TEST,
    SelfTest,
    check_report,
    fresh_reports,
    self_test,
    verify,
    write_self_test,
)
from streamline.checkpoints.streamed import (
    SHARD_BYTES,
    check_written,
    streamed_self_test,
    write_weights,
)
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path as LayerPath
from streamline.engine.stored import stored_of
from streamline.errors import AssetError, PlanError, UnsupportedModelError
from streamline.files import write_json_atomic
from streamline.method import Pruned
from streamline.modeling import modeling_streamline as modeling
from streamline.results.record import Record
from streamline.streaming.decoder import StreamedDecoder

__all__ = ["load", "save", "verify"]


def save(
    pruned: Pruned,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    provenance: dict[str, Any],
    *,
    verify: bool = True,
    record: Record | None = None,
    dense: Record | None = None,
) -> Path:
    """Write a pruned model as a folder that appears whole or not at all.

    Before it appears, a fresh process reads it layer by layer on the CPU and compares what its
    layers make of a few tokens with what those in memory made of them.

    Args:
        pruned: The plan with its modules, trained and in the model's dtype; or a model of its own.
        decoder: The dense model; it is not changed.
        tokenizer: Its files go beside the weights, byte for byte where there are any; or None.
        folder: Must not exist or be empty; ``~`` is expanded.
        provenance: How the model was made; JSON. Versions are added to it.
        verify: Whether a fresh process compares; the provenance says so.
        record: What was measured of the model, for its card; None if nothing was.
        dense: What was measured of the dense model, likewise.

    Returns:
        The folder.

    Raises:
        ConfigError: If the folder exists and is not empty, or is no name for one.
        UnsupportedModelError: If the model is stored in another way than a checkpoint holds it.
        PlanError: If a module is in another dtype than the model.
        AssetError: If the written tensors are not exactly those of its config, or a fresh process
            finds another model than the one in memory.
    """
    target = target_folder(folder)
    require_free(target)
    model = assemble(pruned.path(decoder)).eval()
    stored = stored_of(model)
    if stored is not None:
        raise UnsupportedModelError(
            f"a checkpoint holds each weight in one number format, {decoder.dtype}, and would not "
            f"be what was measured: {stored.way}; quantise the dense model with the tool that is "
            "to serve it"
        )
    _check_dtypes(model, decoder.dtype)
    plain = describe(model, decoder.family)
    with appearing(target) as temporary:
        with quiet():
            recorded = _write(model, pruned.path(decoder), temporary)
        add_older_keys(temporary / "config.json")
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary)
        if isinstance(decoder, StreamedDecoder):
            _check_streamed(temporary, decoder.dtype)
        else:
            read_model(temporary, device_map="meta")
        attention = str(model.config._attn_implementation)
        write_self_test(recorded, temporary / SELF_TEST, attention=attention)
        if verify:
            _require_same(temporary, target, plain)
        write_json_atomic(temporary / PLAN, pruned.plan.to_json())
        found = _provenance(model, provenance | {"verified": verify}, plain)
        write_json_atomic(temporary / PROVENANCE, found)
        serves = ", ".join(serves_in(form_of_config(model.config)))
        write_card(temporary, pruned.plan, found, serves=serves, record=record, dense=dense)
    return target


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, CheckpointInfo]:
    """Read a checkpoint back; every tensor must be accounted for.

    Args:
        folder: A folder that :func:`save` wrote.
        device: Where the weights go; not used with ``device_map``.
        dtype: Dtype of the weights; ``"auto"`` is that of the folder.
        device_map: Handed to transformers, to spread a large model.

    Returns:
        The model in eval mode, the tokenizer (None if none was saved), and what is written about
        it.

    Raises:
        AssetError: If the folder is no checkpoint, or its tensors are not those of its config.
    """
    path = Path(folder)
    info = read_info(path)
    model = read_model(path, dtype=dtype, device_map=device_map)
    if device_map is None:
        model.to(device)
    tokenizer: Any = None
    if has_tokenizer(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    return model.eval(), tokenizer, info


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and reports of transformers, which are then as they were before."""
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def read_model(path: Path, **options: Any) -> Any:
    """Load a folder's model and account for every tensor.

    Args:
        path: A saved model.
        **options: Handed to ``from_pretrained``.

    Returns:
        The model.

    Raises:
        AssetError: If a tensor is missing, unexpected or of another shape.
    """
    modeling.register()
    loader: Any = AutoModelForCausalLM
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet():
            model, report = loader.from_pretrained(path, **options)
    except ValueError as error:
        raise AssetError(f"checkpoint {path} cannot be loaded: {error}") from error
    wrong = {key: sorted(map(str, keys)) for key, keys in report.items() if keys}
    if wrong:
        raise AssetError(f"the tensors in {path} are not those of its config: {wrong}")
    return model


def _write(model: PreTrainedModel, path: LayerPath, folder: Path) -> SelfTest:
    """Write config and weights; returns the model's answer to the tokens of the self-test."""
    decoder = path.decoder
    if not isinstance(decoder, StreamedDecoder):
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        return self_test(model, decoder.family.layers, decoder.device)
    write_weights(model, decoder, folder)
    return streamed_self_test(path, list(submodule(model, decoder.family.layers).children()))


def _require_same(folder: Path, target: Path, plain: bool) -> None:
    """Let a fresh process read a folder that is to become ``target``.

    Raises:
        AssetError: If it does not find the model in memory there.
    """
    try:
        # What code there is in the folder was copied there a moment ago.
        (report,) = fresh_reports(folder, trust_remote_code=not plain)
        check_report(report | {"folder": f"what was written for {target}"})
    except AssetError as error:
        raise AssetError(
            f"{error}. Nothing was saved. Without this check: --no-verify, save(..., verify=False)"
        ) from None


def _check_streamed(folder: Path, dtype: torch.dtype) -> None:
    """:func:`read_model` for files that must not be mapped: they may be larger than the memory."""
    modeling.register()
    check_written(folder, dtype)


def _check_dtypes(model: nn.Module, dtype: torch.dtype) -> None:
    wrong = {
        f"{name} is {parameter.dtype}"
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.dtype != dtype
    }
    if wrong:
        raise PlanError(
            f"a checkpoint has one dtype, {dtype}: {', '.join(sorted(wrong)[:3])}; "
            "bring replacements to the model's dtype before saving"
        )


def _provenance(model: PreTrainedModel, provenance: dict[str, Any], plain: bool) -> dict[str, Any]:
    import transformers

    return {
        **provenance,
        "plain": plain,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "streamline-bench": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **provenance.get("versions", {}),
        },
    }
