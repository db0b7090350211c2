"""Content keys of tensors, made where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["checksums", "digest"]

#: Words that are summed at once.
_WORDS = 1 << 18
_MULTIPLIERS = (0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D)  # odd, below 2^63


def digest(tensors: Iterable[Tensor]) -> str:
    """A content key of some tensors: of their bytes, dtypes and shapes.

    Made where they lie: by SHA-256 on a CPU, elsewhere by :func:`checksums`, so that no weights
    leave an accelerator. Keys of the two kinds differ.

    Args:
        tensors: Any tensors.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.device.type == "cpu":
            total.update(_bytes(tensor).numpy())  # type: ignore[arg-type]
        else:
            total.update(str(checksums(tensor)).encode())
    return total.hexdigest()


def checksums(tensor: Tensor) -> list[int]:
    """Two sums over a tensor's bytes, computed on its device; every device gives the same.

    The bytes are taken as 32-bit words times pseudo-random odd numbers, modulo 2^64.

    Args:
        tensor: Any dtype and shape.
    """
    data = _bytes(tensor)
    words = functional.pad(data, (0, -len(data) % 4)).view(torch.int32)
    index = torch.arange(min(len(words), _WORDS), device=data.device)
    sums = []
    for multiplier in _MULTIPLIERS:
        mixed = index * multiplier
        factors = (mixed ^ (mixed >> 29)) * multiplier | 1
        total = torch.zeros((), dtype=torch.int64, device=data.device)
        for part in torch.split(words, _WORDS):
            total = total * multiplier + (part.long() * factors[: len(part)]).sum()
        sums.append(int(total))
    return sums


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor, [bytes], uint8."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)
