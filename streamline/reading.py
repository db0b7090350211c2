"""Text and JSON that other people's programs wrote, read with one message for whatever is wrong.

Example::

    read_json(Path("run.json"), "Run again to write it anew.")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError

__all__ = ["parse_json", "read_json", "read_text"]


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
