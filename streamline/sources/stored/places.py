"""Where the tensors of a file of weights lie, found without reading any."""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamline.errors import AssetError

__all__ = ["DTYPES", "StoredTensor", "pickled_places", "safe_places"]

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}
"""Names of number formats in a safetensors header that weights may have here."""

_LARGEST_HEADER = 100_000_000  # as in the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: Its safetensors file.
        start: First byte in the file.
        stop: Byte after the last.
        shape: Its shape.
        dtype: Its number format in the file.
        stride: Its strides, where its numbers do not lie one after the other.
        parts: The stored tensors that follow each other in it, with their names; empty where it is
            one of them.
    """

    file: Path
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None
    parts: tuple[tuple[str, StoredTensor], ...] = ()


def safe_places(file: Path, descriptor: int) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Args:
        file: Its name, for messages.
        descriptor: The open file.

    Raises:
        AssetError: If it is damaged, cut short, or holds quantised weights.
    """
    length = os.fstat(descriptor).st_size
    size = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= size <= min(_LARGEST_HEADER, length - 8):
        raise AssetError(f"{file} is not a safetensors file; fetch the model again")
    found: dict[str, StoredTensor] = {}
    try:
        header = json.loads(os.pread(descriptor, size, 8))
        header.pop("__metadata__", None)
        for name, row in header.items():
            start, stop = row["data_offsets"]
            if row["dtype"] not in DTYPES:
                known = ", ".join(DTYPES)
                raise AssetError(
                    f"{name!r} in {file} is of format {row['dtype']}; reading takes "
                    f"{known}. Take a checkpoint that is not quantised"
                )
            place = StoredTensor(
                file, 8 + size + start, 8 + size + stop, tuple(row["shape"]), DTYPES[row["dtype"]]
            )
            if stop - start != math.prod(place.shape) * place.dtype.itemsize:
                raise _cut(file, length, name)
            found[name] = place
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AssetError(f"{file} has a damaged header ({error!r})") from error
    end = 8 + size
    for name, place in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end or place.stop > length:
            raise _cut(file, length, name)
        end = place.stop
    if end != length:
        raise _cut(file, length, "its tensors")
    return found


def _cut(file: Path, length: int, name: str) -> AssetError:
    return AssetError(
        f"{file} holds {length} bytes, too few or too many for {name!r}; it is damaged or cut "
        "short: fetch the model again"
    )


def pickled_places(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of ``torch.save``, found without running code and without reading them.

    Raises:
        AssetError: If the file is damaged, holds anything but a dictionary of tensors, or is of a
            format before torch 1.6.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, or is damaged"
        raise AssetError(
            f"{file} cannot be read as weights alone ({reason}). Code in it is never run; take the "
            "safetensors of this model, or fetch it again"
        ) from error
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items() if isinstance(tensors, dict) else [("", tensors)]:
        storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
        start = getattr(storage, "_checkpoint_offset", None)
        if not isinstance(tensor, Tensor) or start is None or tensor.dtype not in DTYPES.values():
            raise AssetError(
                f"{file} cannot be read as weights alone ({name!r} is no plain tensor of a file "
                "of torch 1.6 or later). Load it with what wrote it and save it with "
                "`save_pretrained`"
            )
        plain = tensor.is_contiguous()
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        count = tensor.numel() if plain or not tensor.numel() else last + 1
        start += tensor.storage_offset() * tensor.dtype.itemsize
        found[name] = StoredTensor(
            file, start, start + count * tensor.dtype.itemsize, tuple(tensor.shape), tensor.dtype,
            None if plain else tensor.stride(),
        )  # fmt: skip
    return found
