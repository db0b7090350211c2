"""Commits on the hub: which one a model or a data set is read at, here and there.

A model's name is looked up once a process, and a run keeps to what it found (`pinned`), whatever
becomes of the branch. Offline, the caches are looked into: a copy lies there under its commit.

Example::

    with pinned({"facebook/opt-1.3b": "3f5c..."}):      # what run.json holds
        model_commit("facebook/opt-1.3b")               # the same again
    dataset_commit("allenai/ai2_arc", "ARC-Easy")       # 40 hexadecimal digits, or None
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from streamline.files import cache_dir
from streamline.sources.hub.failures import hub_errors, hub_reachable, patiently

__all__ = [
    "cached_commits",
    "data_revisions",
    "dataset_commit",
    "forget_commits",
    "is_commit",
    "kept_folder",
    "known_as",
    "known_commit",
    "model_commit",
    "pinned",
]

_COMMIT = re.compile("[0-9a-f]{40}")
_FOUND: dict[str, str] = {}  # what this process has looked up
_PINNED: dict[str, str] = {}  # what the run that it works on keeps to
_ASKED: dict[str, str] = {}  # revisions of data sets in place of their own


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, and what it names stays the same."""
    return _COMMIT.fullmatch(revision) is not None


def known_as(repository: str, revision: str | None) -> str:
    """A repository and the revision that is asked for, in one name: ``ORG/NAME@REVISION``."""
    return repository if revision is None else f"{repository}@{revision}"


@contextmanager
def data_revisions(asked: Mapping[str, str]) -> Iterator[None]:
    """Within it, :func:`dataset_commit` looks some data sets up at a revision that was asked for.

    Args:
        asked: From repositories to branches, tags or commits.
    """
    with _added(_ASKED, asked):
        yield


@contextmanager
def pinned(commits: Mapping[str, str]) -> Iterator[None]:
    """Within it, models are read at these commits, wherever in this process they are named.

    Args:
        commits: From :func:`known_as` to commits; of others the commit is looked up.
    """
    with _added(_PINNED, commits):
        yield


@contextmanager
def _added(known: dict[str, str], more: Mapping[str, str]) -> Iterator[None]:
    """Within it, a mapping holds more; afterwards it is as it was."""
    before = dict(known)
    known.update(more)
    try:
        yield
    finally:
        known.clear()
        known.update(before)


def model_commit(hub_id: str, revision: str | None = None) -> str:
    """The commit at which this process reads a model: looked up once, the same for all its files.

    It is the one that the run keeps to, or that of the cached files, or else of the branch on the
    hub. transformers would find it too, but only after minutes of retries where there is no
    network, and with another message for each case. Call inside `explained`.

    Args:
        hub_id: The repository.
        revision: Branch, tag or commit; None for the main branch.

    Returns:
        40 hexadecimal digits.

    Raises:
        Exception: What the hub's client raises.
    """
    found = known_commit(hub_id, revision)
    if found is None:
        found = _FOUND[known_as(hub_id, revision)] = _looked_up(hub_id, revision)
    return found


def known_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit of :func:`model_commit` if it need not be looked up, else None."""
    name = known_as(hub_id, revision)
    return _PINNED.get(name) or _FOUND.get(name)


def forget_commits() -> None:
    """Look every model up again."""
    _FOUND.clear()


def _looked_up(hub_id: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    wanted = revision or "main"
    cached = try_to_load_from_cache(hub_id, "config.json", revision=wanted)
    if isinstance(cached, str):
        return Path(cached).parent.name

    def ask() -> str:
        commit = str(HfApi().model_info(hub_id, revision=wanted, timeout=10).sha)
        try:  # by its branch, so that the cache knows later, without the hub, which commit it has
            return Path(hf_hub_download(hub_id, "config.json", revision=wanted)).parent.name
        except EntryNotFoundError:
            return commit

    return patiently(ask, f"model {hub_id}")


def dataset_commit(
    repository: str, config: str | None = None, revision: str = "main", *, kept: bool = False
) -> str | None:
    """The commit that a branch of a data set is at: on the hub, or of the newest copy here.

    Where a run asks for another revision (:func:`data_revisions`), it is that one's, and a copy
    here is none of a branch that was asked for. A commit is itself, if it can be had.

    Args:
        repository: Its id.
        config: Its configuration, for the copies here.
        revision: Branch, tag or commit.
        kept: Whether it is read as a stream, whose copies here are kept rows.

    Returns:
        40 hexadecimal digits, or None if neither the hub nor the cache has it.
    """
    asked = None if is_commit(revision) else _ASKED.get(repository)
    revision = asked or revision
    if hub_reachable():
        found = _asked(repository, revision)
        if found is not None:
            return found
    if asked and not is_commit(asked):
        return None
    if kept:
        rows = [path.name for path in _newest(kept_folder(repository).glob("*"))]
        return revision if revision in rows else next(iter(rows), None)
    here = cached_commits(repository, config)
    if is_commit(revision):
        return revision if revision in here and _made_newest(repository, config, revision) else None
    return here[0] if here else None


def cached_commits(repository: str, config: str | None) -> list[str]:
    """The commits of a data set that lie in the cache of ``datasets``, the newest copy first."""
    return [path.name for path in _copies(repository, config)]


def kept_folder(repository: str) -> Path:
    """Where rows that were read from a data set as a stream are kept, below their commits."""
    return cache_dir() / "texts" / "hub" / repository.replace("/", "--")


@lru_cache(maxsize=256)
def _asked(repository: str, revision: str) -> str | None:
    """The commit as the hub says, or None."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi().dataset_info(repository, revision=revision, timeout=10).sha)

    try:
        return patiently(ask, f"data set {repository}")
    except hub_errors():
        return None  # the cache may have it


def _copies(repository: str, config: str | None) -> list[Path]:
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = repository.rpartition("/")
    folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else camelcase_to_snakecase(name)
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder
    # Single files of a repository are kept under a name that begins so.
    copies = [*root.glob(f"{config or '*'}/*/*"), *root.glob("default-*/*/*")]
    return _newest(copies)


def _newest(folders: Iterable[Path]) -> list[Path]:
    """The folders that are named by a commit, the newest first."""
    found = [path for path in folders if path.is_dir() and is_commit(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _made_newest(repository: str, config: str | None, commit: str) -> bool:
    """Offline ``datasets`` reads its newest copy, whatever revision is asked for."""
    wanted, *others = sorted(_copies(repository, config), key=lambda path: path.name != commit)
    if not others or all(wanted.stat().st_mtime > other.stat().st_mtime for other in others):
        return True
    try:
        os.utime(wanted)
    except OSError:
        return False
    return True
