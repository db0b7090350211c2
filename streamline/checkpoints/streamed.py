"""Writing a model pruned from a streamed one: tensor by tensor, from shard to shard.

The pruned model is the streamed one's skeleton with other layers, so its own parameter names are
the new, renumbered ones, and each parameter knows where its weight lies. One tensor is in memory at
a time; what a path holds in memory anyway is written from there. The self-test is one pass.

Example::

    write_weights(model, decoder, folder)          # model: assemble(pruned.path(decoder))
    streamed_self_test(pruned.path(decoder), layers)       # ids, logits, tokens, ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from streamline.checkpoints.self_test import (
    N_NEW,
    N_TOKENS,
    SelfTest,
    self_test_ids,
    states_of,
)
from streamline.engine.assemble import applications
from streamline.engine.forward import Depths, run
from streamline.engine.paths import Path as LayerPath
from streamline.errors import AssetError
from streamline.files import write_json_atomic
from streamline.sources.accounting import OLD_NAMES, account
from streamline.sources.stored.places import DTYPES
from streamline.sources.weights import WeightSource, memory_of
from streamline.streaming.decoder import HEAD, StreamedDecoder
from streamline.streaming.opening import empty_model
from streamline.training.parts.changed import Changed

__all__ = ["SHARD_BYTES", "check_written", "streamed_self_test", "write_shards", "write_weights"]

SHARD_BYTES = 5 << 30
"""Most bytes of a file, unless one tensor is larger."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(
    model: PreTrainedModel,
    decoder: StreamedDecoder,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's config and weights as ``save_pretrained`` would, without having them.

    Args:
        model: A model on the streamed one's parameters and on others that are in memory.
        decoder: The streamed model.
        folder: Where to write; made if it is not there.
        shard_bytes: Most bytes of a file.

    Raises:
        AssetError: If a weight cannot be read.
    """
    if (decoder.source.folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(decoder.source.folder)
    model.save_pretrained(folder, state_dict={})

    parts: dict[int, str] = {}  # of tensors that lie in the files as several

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _tensors(model):
            key = decoder.key_of(tensor) if tensor.is_meta else None
            stored = () if key is None else decoder.source[key].parts
            for old, place in stored:
                part = torch.empty(place.shape, dtype=tensor.dtype, device="meta")
                parts[id(part)] = old
                yield _renamed(old, str(key), name), part
            if not stored:
                yield name, tensor

    changed = {id(m.weight): m for m in model.modules() if isinstance(m, Changed)}

    def value(tensor: Tensor) -> Tensor:
        key = parts.get(id(tensor)) or (decoder.key_of(tensor) if tensor.is_meta else None)
        assert key is not None or not tensor.is_meta
        found = tensor.detach() if key is None else decoder.source.read(key, tensor.dtype)
        return changed[id(tensor)].merged(found) if id(tensor) in changed else found

    write_shards(folder, each(), value, shard_bytes=shard_bytes)


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    value: Callable[[Tensor], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors of which only one tensor is in memory at a time.

    Args:
        folder: Where to write, one file or many with an index.
        tensors: Names, with tensors of the right shape and dtype; these may be empty.
        value: Returns what is to be written for each of them; called just before it is written.
        shard_bytes: Most bytes of a file.
    """
    shards: list[list[tuple[str, Tensor]]] = [[]]
    free, total = shard_bytes, 0
    for name, tensor in tensors:
        size = _size(tensor)
        if shards[-1] and size > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append((name, tensor))
        free -= size
        total += size
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], value)
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard, value)
        files |= {name: file for name, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    write_json_atomic(folder / "model.safetensors.index.json", index)


def check_written(folder: Path, dtype: torch.dtype) -> None:
    """Account for every tensor of a written folder, without reading or mapping any.

    Args:
        folder: Config and weights.
        dtype: Dtype of the weights.

    Raises:
        AssetError: If a tensor is missing, left over, or of another shape or dtype than the model
            of the config has.
    """
    model = empty_model(AutoConfig.from_pretrained(folder), dtype)
    tensors = model.state_dict(keep_vars=True)
    with WeightSource(folder) as source:
        places = account(model, source)
        wrong = {
            places[name] for name in places if source[places[name]].dtype != tensors[name].dtype
        }
    if wrong:
        raise AssetError(f"tensors in {folder} are of another dtype than {dtype}: {sorted(wrong)}")


def streamed_self_test(path: LayerPath, layers: Sequence[nn.Module]) -> SelfTest:
    """The self-test of a path through a streamed model: one pass, so a continuation that is given.

    Args:
        path: The path.
        layers: The layers of the model that was assembled of it.
    """
    decoder = path.decoder
    assert isinstance(decoder, StreamedDecoder)
    text = self_test_ids(decoder.config, N_TOKENS + N_NEW)
    n_nodes = len(path.nodes)
    parts = [LayerPath(decoder, path.nodes[:n], path.name) for n in range(n_nodes + 1)]
    depths = accumulate(len(applications(node.module)) for node in path.nodes)
    ((_, states),) = run(parts, [Depths(text)])
    with torch.no_grad():
        for _ in decoder.each([HEAD]):
            logits = decoder.leave(states[-1][:, N_TOKENS - 1 : -1]).float().cpu()
    likely, choices = logits[0].log_softmax(-1).max(-1)
    return SelfTest(
        text[:, :N_TOKENS],
        logits[:, 0],
        text[:1],
        choices,
        likely,
        {
            depth: hidden[:, N_TOKENS - 1].float().cpu()
            for depth, hidden in zip(depths, states[1:], strict=True)
        },
        decoder.family.layers,
        states_of(layers),
    )


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a file has to hold: every distinct tensor under its first name."""
    seen: set[int] = set()
    for name, tensor in _stored(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _stored(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under the name that ``save_pretrained`` gives it in a file.

    Transformers renames the head of some families, but not in classes that come with a checkpoint.
    """
    old, new = OLD_NAMES.get(model.config.model_type, ("", ""))
    renamed = bool(old) and not hasattr(model.config, "streamline")
    for name, tensor in model.state_dict(keep_vars=True).items():
        yield old + name.removeprefix(new) if renamed and name.startswith(new) else name, tensor


def _renamed(old: str, key: str, name: str) -> str:
    """The name of a stored part of a tensor, which was read as ``key`` and is now ``name``."""
    same = commonprefix([key[::-1], name[::-1]])[::-1]
    return name.removesuffix(same) + old.removeprefix(key.removesuffix(same))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_file(
    file: Path, tensors: list[tuple[str, Tensor]], value: Callable[[Tensor], Tensor]
) -> None:
    """Write one safetensors file, a tensor at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        size = _size(tensor)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors:
            stream.write(memory_of(value(tensor).cpu().contiguous()))
