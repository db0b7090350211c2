"""A model's tensors, each read from its file straight into the memory it needs.

Files are not mapped: a mapped file counts as the process's own memory as far as it has been
touched, and what a streamed model must keep small is exactly that. Every read is counted.

Example::

    with WeightSource(folder) as source:
        weight = source.read("model.layers.0.mlp.up_proj.weight", torch.bfloat16)
        source.reads["model.layers.0.mlp.up_proj.weight"], source.bytes_read      # 1, ...
"""

from __future__ import annotations

import os
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.errors import AssetError
from streamline.sources.folders import layout
from streamline.sources.stored.experts import with_experts_joined
from streamline.sources.stored.places import StoredTensor, pickled_places, safe_places

__all__ = ["WeightSource", "is_harmless", "memory_of"]

_ONE_READ = 1 << 30  # a single system call reads less than 2 GiB
_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids"
    r"|(attn|attention|self_attn|self_attention)\.(bias|masked_bias))$"
)


class WeightSource:
    """The tensors of one model in a folder: one file, or shards with an index.

    The experts of a mixture, which lie one by one, are read as one tensor each for what goes into
    them and what comes out. Reading is safe from several threads.

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
            self._stored = self._tensors
            self._tensors = with_experts_joined(self._stored)
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
            name: Its name, or that of one stored tensor of several that are read as one.
            dtype: Number format to give floating-point tensors; None for the file's own.

        Returns:
            A tensor on the CPU that shares memory with nothing.

        Raises:
            AssetError: If the file ends before the tensor does, cannot be read, or holds numbers
                too large for float16.
        """
        place = self._tensors[name] if name in self._tensors else self._stored[name]
        tensor = torch.empty(_extent(place), dtype=place.dtype)
        view, size = memory_of(tensor), 0
        for part, one in place.parts or ((name, place),):
            self._fill(view[size : size + one.stop - one.start], one, part)
            size += one.stop - one.start
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

    def _fill(self, view: memoryview, place: StoredTensor, name: str) -> None:
        """Read what lies in one place."""
        done = 0
        try:
            while done < len(view):
                part = view[done : done + _ONE_READ]
                count = os.preadv(self._open[place.file], [part], place.start + done)
                if count == 0:
                    raise AssetError(
                        f"{place.file} ends in the middle of {name!r}; fetch the model again"
                    )
                done += count
        except OSError as error:
            raise AssetError(f"{place.file} cannot be read: {error}") from error

    def _add(self, file: Path) -> None:
        """Open a file and find its tensors."""
        try:
            self._open[file] = descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise AssetError(
                f"{file} cannot be opened ({error.strerror}); fetch the model again"
            ) from error
        places = pickled_places(file) if file.suffix == ".bin" else safe_places(file, descriptor)
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
