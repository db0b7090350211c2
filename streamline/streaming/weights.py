"""A checkpoint's tensors, each read from its safetensors file straight into the memory it needs.

Files are not mapped: a mapped file counts as the process's own memory as far as it has been
touched, and what a streamed model must keep small is exactly that. Every read is counted.

Example::

    with WeightSource(folder) as source:
        weight = source.read("model.layers.0.mlp.up_proj.weight", torch.bfloat16)
        source.reads["model.layers.0.mlp.up_proj.weight"], source.bytes_read      # 1, ...
"""

from __future__ import annotations

import json
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.errors import AssetError

__all__ = ["DTYPES", "StoredTensor", "WeightSource", "memory_of"]

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

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # as in the safetensors library
_ONE_READ = 1 << 30  # a single system call reads less than 2 GiB


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: Its safetensors file.
        start: First byte in the file.
        stop: Byte after the last.
        shape: Its shape.
        dtype: Its number format in the file.
    """

    file: Path
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightSource:
    """The tensors of one model in a folder: one safetensors file, or shards with an index.

    Reading is safe from several threads.

    Args:
        folder: A folder as ``save_pretrained`` writes it.

    Raises:
        AssetError: If there are no safetensors, a file is missing, damaged or cut short, or an
            index does not agree with its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads: Counter[str] = Counter()
        self.bytes_read = 0
        self._tensors: dict[str, StoredTensor] = {}
        self._open: dict[Path, int] = {}
        weakref.finalize(self, _close, self._open)
        wanted = _index(folder)
        try:
            for file in dict.fromkeys(wanted.values()) if wanted else [folder / _SINGLE]:
                self._tensors |= dict(self._headers(file))
        except BaseException:
            self.close()
            raise
        lost = [name for name in wanted or () if name not in self._tensors]
        if lost:
            self.close()
            raise AssetError(
                f"{folder / _INDEX} names {lost[0]!r}, which is in no file of {folder}; "
                "fetch the model again"
            )

    def __enter__(self) -> WeightSource:
        """The source itself; its files are closed on leaving."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """The names of all tensors."""
        return iter(self._tensors)

    def __getitem__(self, name: str) -> StoredTensor:
        """Where a tensor lies; nothing is read."""
        return self._tensors[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: Its name in the checkpoint.
            dtype: Number format to give floating-point tensors; None for the file's own.

        Returns:
            A tensor on the CPU that shares memory with nothing.

        Raises:
            AssetError: If the file ends before the tensor does, or cannot be read.
        """
        place = self._tensors[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        view = memory_of(tensor)
        done, size = 0, place.stop - place.start
        try:
            while done < size:
                part = view[done : done + _ONE_READ]
                count = os.preadv(self._open[place.file], [part], place.start + done)
                if count == 0:
                    raise AssetError(
                        f"{place.file} ends in the middle of {name!r}; fetch the model again"
                    )
                done += count
        except OSError as error:
            raise AssetError(f"{place.file} cannot be read: {error}") from error
        self.reads[name] += 1
        self.bytes_read += size
        if dtype is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype)

    def close(self) -> None:
        """Close the files; nothing can be read afterwards. A source let go closes by itself."""
        _close(self._open)

    def _headers(self, file: Path) -> Iterator[tuple[str, StoredTensor]]:
        """Open a file and find its tensors."""
        try:
            self._open[file] = descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise AssetError(
                f"{file} cannot be opened ({error.strerror}); layers can only be streamed from "
                f"safetensors: one {_SINGLE}, or shards named in {_INDEX}"
            ) from error
        length = os.fstat(descriptor).st_size
        size = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if not 2 <= size <= min(_LARGEST_HEADER, length - 8):
            raise AssetError(f"{file} is not a safetensors file; fetch the model again")
        try:
            header = json.loads(os.pread(descriptor, size, 8))
            header.pop("__metadata__", None)
            for name, row in header.items():
                start, stop = row["data_offsets"]
                if row["dtype"] not in DTYPES:
                    known = ", ".join(DTYPES)
                    raise AssetError(
                        f"{name!r} in {file} is of format {row['dtype']}; streaming reads {known}. "
                        "Take a checkpoint that is not quantised"
                    )
                found = StoredTensor(
                    file, 8 + size + start, 8 + size + stop, tuple(row["shape"]),
                    DTYPES[row["dtype"]],
                )  # fmt: skip
                expected = found.dtype.itemsize
                for extent in found.shape:
                    expected *= extent
                if stop - start != expected or found.stop > length:
                    raise AssetError(
                        f"{file} holds {length} bytes, too few or too many for {name!r}; it is "
                        "damaged or cut short: fetch the model again"
                    )
                yield name, found
        except (KeyError, TypeError, ValueError) as error:
            raise AssetError(f"{file} has a damaged header ({error!r})") from error


def _close(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to be read or written in place."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _index(folder: Path) -> dict[str, Path] | None:
    """Tensor name -> file of a sharded checkpoint; None for a single file."""
    path = folder / _INDEX
    if (folder / _SINGLE).is_file() or not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in names.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AssetError(f"{path} is not an index of safetensors files ({error!r})") from error
