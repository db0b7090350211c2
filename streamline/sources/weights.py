"""A model's tensors, each read from its file straight into the memory it needs.

Files are not mapped: a mapped file counts as the process's own memory as far as it has been
touched, and what a streamed model must keep small is exactly that. Every read is counted.

Example::

    with WeightSource(folder) as source:
        weight = source.read("model.layers.0.mlp.up_proj.weight", torch.bfloat16)
        source.reads["model.layers.0.mlp.up_proj.weight"], source.bytes_read      # 1, ...
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.errors import AssetError
from streamline.sources.folders import layout

__all__ = ["DTYPES", "StoredTensor", "WeightSource", "is_harmless", "memory_of"]

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
_ONE_READ = 1 << 30  # a single system call reads less than 2 GiB
_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids"
    r"|(attn|attention|self_attn|self_attention)\.(bias|masked_bias))$"
)


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
    """

    file: Path
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None


class WeightSource:
    """The tensors of one model in a folder: one file, or shards with an index.

    Reading is safe from several threads.

    Args:
        folder: A folder as ``save_pretrained`` writes it.

    Attributes:
        folder: The folder.
        files: The files that hold the tensors, and their index if there is one.

    Raises:
        AssetError: If there are no weights, a file is missing, damaged or cut short, an index does
            not agree with its files, or one file and shards lie side by side.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads: Counter[str] = Counter()
        self.bytes_read = 0
        self._tensors: dict[str, StoredTensor] = {}
        self._open: dict[Path, int] = {}
        weakref.finalize(self, _close, self._open)
        self.files, index = layout(folder)
        try:
            for file in self.files:
                if file.suffix != ".json":
                    self._add(file)
            if index is not None:
                self._compare(*index)
        except BaseException:
            self.close()
            raise

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
            AssetError: If the file ends before the tensor does, cannot be read, or holds numbers
                too large for float16.
        """
        place = self._tensors[name]
        tensor = torch.empty(_extent(place), dtype=place.dtype)
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
        if place.stride is not None:
            tensor = tensor.as_strided(place.shape, place.stride).contiguous()
        if dtype is None or not tensor.is_floating_point():
            return tensor
        given = tensor.to(dtype)
        if dtype == torch.float16 and not given.isfinite().all() and tensor.isfinite().all():
            raise AssetError(
                f"{name!r} in {place.file} holds numbers beyond what float16 can; take "
                "--dtype bfloat16"
            )
        return given

    def close(self) -> None:
        """Close the files; nothing can be read afterwards. A source let go closes by itself."""
        _close(self._open)

    def _add(self, file: Path) -> None:
        """Open a file and find its tensors."""
        try:
            self._open[file] = descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise AssetError(
                f"{file} cannot be opened ({error.strerror}); fetch the model again"
            ) from error
        places = _pickled_places(file) if file.suffix == ".bin" else _safe_places(file, descriptor)
        for name, place in places.items():
            if name in self._tensors:
                other = self._tensors[name].file
                raise _disagreement(self.files[-1], {name: f"in {other.name} and {file.name}"})
            self._tensors[name] = place

    def _compare(self, path: Path, index: dict[str, Path]) -> None:
        """Every tensor must lie where the index says, and there must be no other."""
        there = {name: place.file for name, place in self._tensors.items()}
        wrong: dict[str, str] = {}
        for name in sorted(index.keys() | there.keys()):
            named, found = index.get(name), there.get(name)
            if named is None and found is not None and not is_harmless(name):
                wrong[name] = f"in {found.name}, not in the index"
            elif named is not None and named != found:
                wrong[name] = f"not in {named.name}"
        if wrong:
            raise _disagreement(path, wrong)


def is_harmless(name: str) -> bool:
    """Whether a tensor that a model does not have may be left over: a buffer of older versions."""
    return _HARMLESS.search(name) is not None


def _disagreement(path: Path, wrong: dict[str, str]) -> AssetError:
    shown = ", ".join(f"{name!r} is {what}" for name, what in list(wrong.items())[:3])
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return AssetError(
        f"{path} and its files disagree: {shown}{more}. Take index and files of one model; fetch "
        "it again"
    )


def _extent(place: StoredTensor) -> tuple[int, ...]:
    """The shape in which a tensor's numbers are read."""
    if place.stride is None:
        return place.shape
    return ((place.stop - place.start) // place.dtype.itemsize,)


def _close(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to be read or written in place."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _safe_places(file: Path, descriptor: int) -> dict[str, StoredTensor]:
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


def _pickled_places(file: Path) -> dict[str, StoredTensor]:
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
