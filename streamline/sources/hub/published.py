"""Files that authors publish elsewhere than on the hub: fetched once, known by their SHA-256.

Example::

    path = published_file("https://raw.githubusercontent.com/OWNER/NAME/COMMIT/rows.json", sha256)
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from streamline.errors import AssetError
from streamline.files import cache_dir
from streamline.sources.hub.failures import (
    DamagedError,
    first_line,
    hub_errors,
    hub_reachable,
    patiently,
)
from streamline.sources.made_folder import made_folder

__all__ = ["published_file"]


def published_file(address: str, sha256: str) -> Path:
    """The file in the cache, fetched if it is not there.

    Args:
        address: Where it is published.
        sha256: Of its content, 64 hexadecimal digits.

    Raises:
        AssetError: If it cannot be had, with the reason.
    """
    name = address.rpartition("/")[2]

    def make(folder: Path) -> None:
        try:
            waits = None if hub_reachable() else ()  # without a network no minute is spent on it
            content = patiently(lambda: _content(address, sha256), name, waits=waits)
        except hub_errors() as error:
            raise AssetError(f"{address} cannot be read: {first_line(error)}") from error
        (folder / name).write_bytes(content)

    place = f"published-{sha256[:12]}"
    return made_folder(cache_dir() / "files" / place, lock=place, make=make) / name


def _content(address: str, sha256: str) -> bytes:
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    answer = get_session().get(address, timeout=30, follow_redirects=True)
    hf_raise_for_status(answer)
    found = hashlib.sha256(answer.content).hexdigest()
    if found != sha256:
        raise DamagedError(f"its SHA-256 is {found}, and must be {sha256}")
    return bytes(answer.content)
