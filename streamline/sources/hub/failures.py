"""What goes wrong with the hub: what is tried again after a while, and one explanation of the rest.

What may pass (no connection, one that ends, a busy or failing server) is tried again; what will
not (no such repository or revision, no right to read it) is said at once, with what to do.

Example::

    wanted = Wanted(kind="model", repository="facebook/opt-1.3b", shown="Model 'opt-1.3b'")
    with explained(wanted):
        patiently(lambda: fetch("facebook/opt-1.3b"), "facebook/opt-1.3b")
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from streamline.errors import AssetError

__all__ = [
    "DamagedError",
    "HubError",
    "Wanted",
    "causes",
    "explained",
    "explanation",
    "first_line",
    "hub_errors",
    "hub_problem",
    "hub_reachable",
    "patiently",
    "worth_another_try",
]

log = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
_Made = TypeVar("_Made")


class HubError(AssetError):
    """What was wanted of the hub cannot be had: it has none, gives none, or is not reached."""


class DamagedError(ConnectionError):
    """A file came with another content than the hub has; it may come whole next time."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read from the hub, in the words of a message.

    Attributes:
        kind: What it is.
        repository: Its id.
        shown: How a message begins: the name as given, and what of it is read.
        revision: Branch, tag or commit as asked for; None for the newest.
        instead: What else may be done, in whole sentences.
    """

    kind: Literal["model", "data set"]
    repository: str
    shown: str
    revision: str | None = None
    instead: str = ""

    @property
    def address(self) -> str:
        """Its page on the hub."""
        below = "" if self.kind == "model" else "datasets/"
        return f"https://huggingface.co/{below}{self.repository}"


@contextmanager
def explained(wanted: Wanted) -> Iterator[None]:
    """Within it, what the hub refuses is one message with the reason; other errors pass.

    Raises:
        HubError: In place of what the hub's client raises.
    """
    try:
        yield
    except hub_errors() as error:
        why = explanation(error, wanted)
        if why is None:
            raise
        raise HubError(why) from error


def explanation(error: BaseException, wanted: Wanted) -> str | None:
    """Why the hub does not give something, and what to do; None if it is not the hub's doing.

    Args:
        error: What was raised.
        wanted: What was read.
    """
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    chain = list(causes(error))
    statuses = _statuses(chain)
    instead = f" {wanted.instead}" if wanted.instead else ""
    if _has(chain, GatedRepoError) or any("gated dataset" in text for text in _unknown(chain)):
        return (
            f"{wanted.shown} is gated. Accept its terms at {wanted.address}, then run `hf auth "
            f"login` (or set HF_TOKEN).{instead}"
        )
    lost = any(text.startswith("Revision ") for text in _unknown(chain))
    if lost or _has(chain, RevisionNotFoundError):
        return (
            f"{wanted.shown} has no revision {wanted.revision or 'main'!r} on the hub: it was "
            f"never there, or is gone. Name a branch, tag or commit that {wanted.address} has."
            f"{instead}"
        )
    if _is_offline(chain):
        return (
            f"{wanted.shown} is not in the local cache, and the hub cannot be reached: "
            f"HF_HUB_OFFLINE is set. Unset it, or read it once with the network.{instead}"
        )
    if _is_missing(chain) or any(status in (401, 403) for status in statuses):
        return (
            f"The hub has no {wanted.kind} {wanted.repository!r} that this machine may read. A "
            f"private one needs `hf auth login`.{instead}"
        )
    if 429 in statuses:
        return (
            f"{wanted.shown} was not given: the hub asks to wait (429), tried several times. Try "
            f"later, or log in with `hf auth login`.{instead}"
        )
    if _has(chain, DamagedError):
        return (
            f"{wanted.shown} came damaged from the hub, tried several times: {first_line(error)} "
            f"Check the network, and what caches in between.{instead}"
        )
    if worth_another_try(error) or _is_elsewhere(chain):
        return (
            f"{wanted.shown} is not in the local cache, and the hub cannot be reached, tried "
            f"several times: {first_line(error)} Check the network.{instead}"
        )
    return None


def patiently(
    action: Callable[[], _Made], what: str, *, waits: Sequence[float] | None = None
) -> _Made:
    """Do something that needs the hub, again after a while where that can help.

    Args:
        action: What to do; it may be called several times.
        what: What it reads, for the log.
        waits: Seconds before each further try; None for the usual ones.

    Returns:
        What it returns.

    Raises:
        Exception: What its last try raised.
    """
    for wait in WAITS if waits is None else waits:
        try:
            return action()
        except Exception as error:  # of the hub, or of a reader of what it gave
            if not worth_another_try(error):
                raise
            log.warning("%s: %s; tried again in %g s", what, first_line(error), wait)
            time.sleep(wait)
    return action()


def worth_another_try(error: BaseException) -> bool:
    """Whether an error of the hub may pass: the connection, a busy server or a failing one."""
    *_, library = hub_errors()
    chain = list(causes(error))
    if _is_offline(chain):
        return False
    statuses = _statuses(chain)
    if statuses:
        return any(status == 429 or status >= 500 for status in statuses)
    return _has(chain, ConnectionError, TimeoutError, library)


def hub_reachable() -> bool:
    """Whether the hub answers."""
    return hub_problem() is None


@lru_cache(maxsize=1)
def hub_problem() -> str | None:
    """Why the hub cannot be asked, found out once a process with several requests; else None."""
    from huggingface_hub import get_session

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")

    def ask() -> None:
        answer: Any = get_session().head(address, timeout=5)
        if answer.status_code >= 500:
            answer.raise_for_status()

    try:
        patiently(ask, "the hub", waits=WAITS[:2])
    except hub_errors() as error:
        return f"{address} cannot be reached: {first_line(error).rstrip('.')}"
    return None


def hub_errors() -> tuple[type[Exception], ...]:
    """What reading from the hub may raise.

    Among them the base class of its HTTP library, the last one, which is found through the hub
    client's own errors: the client has changed libraries between versions.
    """
    from huggingface_hub.errors import HfHubHTTPError

    library = next(c for c in HfHubHTTPError.__bases__ if c is not OSError)
    assert issubclass(library, Exception)
    return (OSError, ValueError, library)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's text, as a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(". ") if lines else type(error).__name__
    return f"{text}."


def _has(chain: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)


def _statuses(chain: Sequence[BaseException]) -> set[int]:
    from huggingface_hub.errors import HfHubHTTPError

    return {one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)}


def _unknown(chain: Sequence[BaseException]) -> list[str]:
    """What ``datasets`` says of a set that it does not find; it has one error for several cases."""
    return [str(one) for one in chain if type(one).__name__ == "DatasetNotFoundError"]


def _is_missing(chain: Sequence[BaseException]) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    return _has(chain, RepositoryNotFoundError) or bool(_unknown(chain))


def _is_offline(chain: Sequence[BaseException]) -> bool:
    """Whether the hub was not asked at all; datasets keeps no more of that error than its name."""
    from huggingface_hub.errors import OfflineModeIsEnabled as Offline

    return any(isinstance(one, Offline) or Offline.__name__ in str(one) for one in chain)


def _is_elsewhere(chain: Sequence[BaseException]) -> bool:
    """Whether a file was looked for here because the hub did not answer."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return _has(chain, LocalEntryNotFoundError) or any("reach the Hub" in str(e) for e in chain)
