"""Ways in which a kept file comes to harm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, where: float = 0.5) -> None:
    """Turn one bit, at a fraction of the file's length."""
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(where * len(data)))] ^= 1
    path.write_bytes(data)


def _zero_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


#: Name -> what is done to the file.
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "short": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "one bit": flip,
    "half zero": _zero_half,
    "something else": lambda path: path.write_bytes(b'{"value": [1, 2]}\n'),
}
