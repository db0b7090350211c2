"""Text, JSON and arrays of other people, read with one message for whatever is wrong.

Example::

    read_json(Path("run.json"), "Run again to write it anew.")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import ConfigError
from streamline.hashing import checksum_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["parse_json", "read_arrays", "read_json", "read_text", "safetensors_header"]


def read_text(path: Path, advice: str = "") -> str:
    """A file's text.

    Args:
        path: The file.
        advice: What to do if it cannot be read; a sentence.

    Raises:
        ConfigError: If it cannot be opened, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8 text"
    except OSError as error:
        why = error.strerror or repr(error)
    raise ConfigError(f"{path} cannot be read: {why}. {advice}".rstrip())


def read_json(path: Path, advice: str = "", *, nan: bool = False) -> Any:
    """A file's JSON value; see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, advice), str(path), advice, nan=nan)


def read_arrays(
    path: Path, names: Sequence[str], advice: str = ""
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Some arrays of a safetensors file, without torch, and the file's metadata.

    A file that carries a checksum must have it; those of other programs carry none.

    Args:
        path: The file.
        names: What is wanted of it; only what is there in float32 or float64 is returned.
        advice: What to do if it cannot be read; a sentence.

    Raises:
        ConfigError: If it cannot be opened, is no safetensors or is damaged.
    """
    import numpy as np
    import safetensors

    deserialize: Any = safetensors.deserialize  # it has no types
    try:
        data = path.read_bytes()
        stop, metadata = safetensors_header(data)
        if "checksum" in metadata and checksum_in(data, stop) is None:
            raise ValueError("its content does not have its checksum")
        views = {name: view for name, view in deserialize(data) if name in names}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} is damaged: {error}. {advice}".rstrip()) from None
    kinds = {"F32": "<f4", "F64": "<f8"}
    found = {
        name: np.frombuffer(view["data"], kinds[view["dtype"]]).reshape(view["shape"])
        for name, view in views.items()
        if view["dtype"] in kinds
    }
    return found, metadata


def safetensors_header(data: bytes) -> tuple[int, dict[str, str]]:
    """Where the header of safetensors ends, and the metadata in it.

    Raises:
        ValueError: If it has none.
    """
    stop = 8 + int.from_bytes(data[:8], "little")
    try:
        return stop, dict(json.loads(data[8:stop]).get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError("it is empty" if not data else f"it has no header ({error})") from error


def parse_json(text: str, where: str, advice: str = "", *, nan: bool = False) -> Any:
    """A JSON value in which no key stands twice.

    Args:
        text: The JSON.
        where: File, and line if it is one of many.
        advice: What to do if it is none; a sentence.
        nan: Whether NaN and Infinity, which are no JSON, are taken for the caller to name.

    Raises:
        ConfigError: If it is not such a value.
    """
    try:
        constant = float if nan else _no_number
        return json.loads(text, object_pairs_hook=_once, parse_constant=constant)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # also of a number with too many digits
        why = str(error)
    raise ConfigError(f"{where} is not JSON ({why}). {advice}".rstrip())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
