"""Files from the hub as they arrive: each has the SHA-256 that the hub names, or is not kept.

The hub names large files by their SHA-256, and its client keeps them under that name but compares
their sizes alone. What lies in the cache already is not looked at again.

Example::

    arrived("model", "facebook/opt-1.3b", commit, ["model.safetensors"])
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from streamline.hashing import read_sha256
from streamline.sources.hub.failures import DamagedError

__all__ = ["arrived"]

_SHA256 = re.compile("[0-9a-f]{64}")
_AT_ONCE = 8


def arrived(
    kind: Literal["model", "dataset"], repository: str, commit: str, names: Iterable[str]
) -> list[Path]:
    """Fetch files of a repository into the hub client's cache; what is there already is left.

    Args:
        kind: What it is.
        repository: Its id.
        commit: Its commit.
        names: The files.

    Returns:
        Their paths, in order.

    Raises:
        DamagedError: If one came damaged. It is not kept, so that another try fetches it again.
        Exception: What the hub's client raises.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    def fetch(name: str) -> Path:
        here = try_to_load_from_cache(repository, name, revision=commit, repo_type=kind)
        if isinstance(here, str):
            return Path(here)
        path = Path(hf_hub_download(repository, name, revision=commit, repo_type=kind))
        content = path.resolve()
        if _SHA256.fullmatch(content.name) and read_sha256(content) != content.name:
            path.unlink()
            content.unlink(missing_ok=True)
            raise DamagedError(f"{name} arrived damaged: its SHA-256 is not the one of the hub")
        return path

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(fetch, names))
