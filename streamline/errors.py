"""The errors this package raises on purpose.

Every message states what was given, what is accepted and what to do next. The command line turns
any of these into one message and exit code 2; anything else is an error of the program and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AssetError",
    "ConfigError",
    "MethodError",
    "NotFiniteError",
    "PlanError",
    "StreamlineError",
    "UnknownNameError",
    "UnsupportedModelError",
    "reason",
    "unknown_name",
]


class StreamlineError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(StreamlineError, ValueError):
    """A value of a run, a suite or a method's field is not acceptable."""


class UnknownNameError(StreamlineError, LookupError):
    """A name is in no registry. Not a ``KeyError``: its text would be a quoted repr."""


class NotFiniteError(StreamlineError, ArithmeticError):
    """A weight, a state, a loss or a result is NaN or infinite, so that no figure can be made."""


class MethodError(StreamlineError):
    """A method's own code is at fault: it ends the process, changes the model, cannot be made."""


class PlanError(StreamlineError, ValueError):
    """A plan contradicts itself or the model it is applied to."""


class UnsupportedModelError(StreamlineError):
    """A model does not support what it is to do, or has too few layers or parameters for it."""


class AssetError(StreamlineError):
    """A model, a text or a set of questions cannot be found, fetched or trusted."""


def unknown_name(kind: str, name: str, names: Iterable[str]) -> UnknownNameError:
    """The error for a name that is in no list: nearest names first, then all.

    Args:
        kind: What the name should have been, such as "method".
        name: What was given.
        names: What would have been accepted.
    """
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean: {', '.join(near)}?" if near else ""
    listing = ", ".join(known) if known else "none"
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Available: {listing}")


def reason(error: BaseException) -> str:
    """An error in words, for a record or a message.

    Args:
        error: Any error.

    Returns:
        The text of one of ours; the system's words and the file of one of the system's; else what
        the last line of a traceback would be.
    """
    if isinstance(error, StreamlineError):
        return str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        place = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{place}"
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
