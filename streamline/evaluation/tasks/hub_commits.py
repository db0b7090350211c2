"""Data sets on the hub: whether it answers, which commit of a set there is, what is here already.

Offline, the cache of ``datasets`` is looked into first: a copy lies there under its commit.

Example::

    dataset_commit("allenai/ai2_arc", "ARC-Easy")     # 40 hexadecimal digits, or None
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

from streamline.sources.hub_data import data_errors, patiently

__all__ = ["cached_commits", "dataset_commit", "hub_problem", "hub_reachable"]

_COMMIT = re.compile("[0-9a-f]{40}")
_TRIES, _PAUSE = 3, 1.0  # requests before the hub counts as unreachable, seconds between them


def hub_reachable() -> bool:
    """Whether the hub answers."""
    return hub_problem() is None


@lru_cache(maxsize=1)
def hub_problem() -> str | None:
    """Why the hub cannot be asked, found out once a process with several requests; else None."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(address, method="HEAD")
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            with urllib.request.urlopen(request, timeout=5):
                return None
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return None
            reason = f"it answered with status {error.code}"
        except (urllib.error.URLError, OSError) as error:
            reason = str(getattr(error, "reason", error))
    return f"{address} cannot be reached: {reason}"


def dataset_commit(
    repository: str, config: str | None = None, revision: str = "main"
) -> str | None:
    """The commit that a branch of a data set is at: on the hub, or of the newest copy here.

    Args:
        repository: Its id.
        config: Its configuration, for the copies here.
        revision: Branch, tag or commit.

    Returns:
        40 hexadecimal digits, or None if neither the hub nor the cache has it.
    """
    if hub_reachable():
        found = _asked(repository, revision)
        if found is not None:
            return found
    here = cached_commits(repository, config)
    if _COMMIT.fullmatch(revision):
        return revision if revision in here and _made_newest(repository, config, revision) else None
    return here[0] if here else None


def cached_commits(repository: str, config: str | None) -> list[str]:
    """The commits of a data set that lie in the cache of ``datasets``, the newest copy first."""
    return [path.name for path in _copies(repository, config)]


@lru_cache(maxsize=256)
def _asked(repository: str, revision: str) -> str | None:
    """The commit as the hub says, or None."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi().dataset_info(repository, revision=revision, timeout=10).sha)

    try:
        return patiently(ask, f"data set {repository}")
    except data_errors():
        return None  # the cache may have it


def _copies(repository: str, config: str | None) -> list[Path]:
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = repository.rpartition("/")
    folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else camelcase_to_snakecase(name)
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder
    # Single files of a repository are kept under a name that begins so.
    copies = [*root.glob(f"{config or 'default'}/*/*"), *root.glob("default-*/*/*")]
    found = [path for path in copies if path.is_dir() and _COMMIT.fullmatch(path.name)]
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
