"""Data sets on the hub: read with patience, and with the real reason where they cannot be read.

What may pass (no connection, one that ends, a busy or failing server) is tried again after a while;
what will not (no such set, no right to read it, damaged files) is said at once.

Example::

    rows = load_rows("openai/gsm8k", "main", split="test", revision="main")
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from streamline.errors import AssetError
from streamline.sources.hub import causes, hub_errors

__all__ = ["data_explained", "explain_data", "load_rows", "patiently", "worth_another_try"]

log = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
_Made = TypeVar("_Made")


def load_rows(
    repository: str,
    config: str | None = None,
    *,
    split: str,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
    streaming: bool = False,
) -> Any:
    """Rows of a data set on the hub, or in the cache of what came from it.

    Args:
        repository: Its id.
        config: Its configuration, or None for the only one.
        split: Split, or a slice of one.
        revision: Commit or branch; None for the newest.
        data_files: Split -> file in the repository, where no configuration leads to it.
        streaming: Read while iterating, and not whole.

    Returns:
        A ``datasets.Dataset``, or an ``IterableDataset`` for streaming, to be read within
        :func:`data_explained`.

    Raises:
        AssetError: If it cannot be read; the message has the reason and what to do.
    """
    from datasets import load_dataset

    given: dict[str, Any] = {} if data_files is None else {"data_files": dict(data_files)}
    with data_explained(repository, config, split, revision):
        return patiently(
            lambda: load_dataset(
                repository, config, split=split, revision=revision, streaming=streaming, **given
            ),
            f"data set {repository}",
        )


@contextmanager
def data_explained(
    repository: str, config: str | None, split: str, revision: str | None
) -> Iterator[None]:
    """Within it, what reading a data set may raise is one message with the reason.

    Args:
        repository: Its id.
        config: Its configuration, or None for the only one.
        split: The split that is read.
        revision: Commit or branch, or None.

    Raises:
        AssetError: In place of the error.
    """
    try:
        yield
    except data_errors() as error:
        place = repository if config is None else f"{repository} ({config})"
        raise AssetError(explain_data(error, place, split, revision)) from error


def patiently(action: Callable[[], _Made], what: str) -> _Made:
    """Do something that needs the hub, again after a while where that can help.

    Args:
        action: What to do; it may be called several times.
        what: What it reads, for the log.

    Returns:
        What it returns.

    Raises:
        Exception: What its last try raised.
    """
    for wait in WAITS:
        try:
            return action()
        except data_errors() as error:
            if not worth_another_try(error):
                raise
            log.warning("%s: %s; tried again in %g s", what, _first_line(error), wait)
            time.sleep(wait)
    return action()


def data_errors() -> tuple[type[Exception], ...]:
    """What reading a data set may raise."""
    from datasets.exceptions import DatasetsError

    return (*hub_errors(), RuntimeError, TypeError, LookupError, DatasetsError)


def worth_another_try(error: BaseException) -> bool:
    """Whether an error of the hub may pass: the connection, a busy server or a failing one."""
    from huggingface_hub.errors import HfHubHTTPError

    *_, library = hub_errors()
    chain = list(causes(error))
    if _is_offline(chain):
        return False
    answered = [one for one in chain if isinstance(one, HfHubHTTPError)]
    if answered:
        statuses = {one.response.status_code for one in answered}
        return any(status == 429 or status >= 500 for status in statuses)
    return any(isinstance(one, (ConnectionError, TimeoutError, library)) for one in chain)


def explain_data(error: BaseException, place: str, split: str, revision: str | None) -> str:
    """Why a data set could not be read, and what to do.

    Args:
        error: What was raised.
        place: Its id, with its configuration.
        split: The split that was wanted.
        revision: Commit or branch, or None.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(causes(error))
    unknown = [str(one) for one in chain if isinstance(one, DatasetNotFoundError)]
    name = place.partition(" ")[0]
    at = f" at revision {revision}" if revision not in (None, "main") else ""
    head = f"Data set {place}, split {split}{at}, could not be read from the hub: "

    def has(kind: type[Exception]) -> bool:
        return any(isinstance(one, kind) for one in chain)

    statuses = [one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)]
    local = "or use files of your own: of questions with --data-dir, of a text by its path."
    if has(GatedRepoError) or any("gated" in text for text in unknown):
        return (
            f"{head}it is gated. Accept its terms at https://huggingface.co/datasets/{name} and "
            f"run `hf auth login` (or set HF_TOKEN), {local}"
        )
    if has(RevisionNotFoundError):
        return f"{head}it has no such revision. Name one that it has, {local}"
    refused = any(status in (401, 403) for status in statuses)
    if unknown or refused or has(RepositoryNotFoundError):
        return (
            f"{head}the hub has no such set that this machine may read. A private one needs `hf "
            f"auth login`; {local}"
        )
    if _is_offline(chain):
        return (
            f"{head}HF_HUB_OFFLINE is set, and it is not in the cache. Unset it, read the set "
            f"once with the network, {local}"
        )
    if 429 in statuses:
        return f"{head}the hub asks to wait (429). Try later, log in with `hf auth login`, {local}"
    if worth_another_try(error) or any("reach" in str(one) for one in chain):
        return (
            f"{head}the hub cannot be reached, tried several times: {_first_line(error)} Check the "
            f"network, use what is packaged (--data packaged, the text 'packaged'), {local}"
        )
    return f"{head}{_first_line(error)} Try another copy of it, {local}"


def _is_offline(chain: Sequence[BaseException]) -> bool:
    """Whether the hub was not asked at all; datasets keeps no more of that error than its name."""
    from huggingface_hub.errors import OfflineModeIsEnabled as Offline

    return any(isinstance(one, Offline) or Offline.__name__ in str(one) for one in chain)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(". ") if lines else type(error).__name__
    return f"{text}."
