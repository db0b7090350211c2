"""Data sets on the hub: read with patience, and with the real reason where they cannot be read.

Example::

    rows = load_rows("openai/gsm8k", "main", split="test", revision="main")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from streamline.errors import AssetError
from streamline.sources.hub.arrivals import arrived
from streamline.sources.hub.commits import is_commit
from streamline.sources.hub.failures import (
    HubError,
    Wanted,
    causes,
    explanation,
    first_line,
    hub_errors,
    patiently,
)

__all__ = ["data_explained", "load_rows", "require_fields"]

_LOCAL = "files of your own: of questions with --data-dir, of a text by its path"


def load_rows(
    repository: str,
    config: str | None = None,
    *,
    split: str | None,
    revision: str | None = None,
    data_files: Any = None,
    columns: Sequence[str] = (),
    load: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """Rows of a data set on the hub, or in the cache of what came from it.

    What a data set at a commit consists of is found out once a process, for all its splits.

    Args:
        repository: Its id.
        config: Its configuration, or None for the only one.
        split: Split, or a slice of one; None for all splits.
        revision: Commit or branch; None for the newest.
        data_files: Split -> file in the repository, where no configuration leads to it; or what
            else ``datasets.load_dataset`` takes for it.
        columns: Fields that it must have, where it is read whole.
        load: What opens it where that is not done here; None for ``datasets.load_dataset``.
        **options: What else ``datasets.load_dataset`` takes, such as ``streaming``.

    Returns:
        A ``datasets.Dataset``, or an ``IterableDataset`` for streaming, to be read within
        :func:`data_explained`; a dictionary of them for all splits.

    Raises:
        AssetError: If it cannot be read; the message has the reason and what to do.
    """
    import datasets

    opened = load or datasets.load_dataset
    files = () if data_files is None else _one_each(data_files)

    def read() -> Any:
        if revision is not None and is_commit(revision) and files is not None and not options:
            return _fetched(repository, config, revision, files).as_dataset(split=split)
        given = options if data_files is None else options | {"data_files": data_files}
        return opened(repository, config, split=split, revision=revision, **given)

    with data_explained(repository, config, split, revision):
        rows = patiently(read, f"data set {repository}")
    if columns:
        require_fields(rows.column_names, columns, repository)
    return rows


def _one_each(data_files: Any) -> tuple[tuple[str, str], ...] | None:
    """One file for each split; None if it is more than that."""
    if not isinstance(data_files, Mapping):
        return None
    files = tuple(sorted(data_files.items()))
    return files if all(isinstance(file, str) for _, file in files) else None


def require_fields(found: Iterable[str], wanted: Sequence[str], repository: str) -> None:
    """Refuse rows of a data set that lack fields which are read.

    Args:
        found: The fields that they have.
        wanted: Those that are read.
        repository: Its id.

    Raises:
        AssetError: With both.
    """
    found = list(found)
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise AssetError(
            f"Data set {repository} has no field {', '.join(map(repr, lacking))}, which is read, "
            f"but {', '.join(map(repr, found))}. Name a revision that has it (--data-revisions "
            f"{repository}@REVISION), or use {_LOCAL}."
        )


@lru_cache(maxsize=512)
def _fetched(
    repository: str, config: str | None, commit: str, files: tuple[tuple[str, str], ...]
) -> Any:
    """All splits of a data set at a commit, on this machine; the first half of ``load_dataset``."""
    from datasets import load_dataset_builder

    given: dict[str, Any] = {"data_files": dict(files)} if files else {}
    builder = load_dataset_builder(repository, config, revision=commit, **given)
    if not Path(builder.cache_dir).exists():
        here = f"hf://datasets/{repository}@{commit}/"
        named = chain.from_iterable((builder.config.data_files or {}).values())
        names = [str(name).removeprefix(here) for name in named if str(name).startswith(here)]
        arrived("dataset", repository, commit, names)
    builder.download_and_prepare()
    return builder


@contextmanager
def data_explained(
    repository: str, config: str | None, split: str | None, revision: str | None
) -> Iterator[None]:
    """Within it, what reading a data set may raise is one message with the reason.

    Args:
        repository: Its id.
        config: Its configuration, or None for the only one.
        split: The split that is read; None for all.
        revision: Commit or branch, or None.

    Raises:
        AssetError: In place of the error.
    """
    try:
        yield
    except _data_errors() as error:
        place = repository if config is None else f"{repository} ({config})"
        part = "" if split is None else f", split {split}"
        at = f" at revision {revision}" if revision not in (None, "main") else ""
        shown = f"Data set {place}{part}{at},"
        wanted = Wanted(
            kind="data set",
            repository=repository,
            shown=shown,
            revision=revision,
            instead=f"Or use what is packaged (--data packaged, the text 'packaged'), or {_LOCAL}.",
        )
        why = explanation(error, wanted)
        if why is not None:
            raise HubError(why) from error
        raise AssetError(
            f"{shown} could not be read from the hub: {_why(error)} Try another copy of it, or use "
            f"{_LOCAL}."
        ) from error


def _why(error: BaseException) -> str:
    """What is wrong with the files, which ``datasets`` says behind an error without words."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError):
        error = next((e for e in causes(error) if type(e) is not type(error)), error)
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""
    return kind + first_line(error)


def _data_errors() -> tuple[type[Exception], ...]:
    """What reading a data set may raise."""
    from datasets.exceptions import DatasetsError

    return (*hub_errors(), RuntimeError, TypeError, LookupError, DatasetsError)
