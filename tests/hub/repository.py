"""Revisions of repositories, as folders, with what the hub says of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

_DAY = "2026-01-01T00:00:00.000Z"
LARGE = (".safetensors", ".bin", ".parquet", ".zip", ".gz", ".model")


class Refused(Exception):
    """An answer that is an error, in the hub's form."""

    def __init__(self, status: int, code: str, message: str, **more: str) -> None:
        super().__init__(message)
        self.more = more
        self.status = status
        self.code = code


@cache
def _digests(path: Path, size: int, changed: int) -> tuple[str, str]:
    """SHA-256 of a file in one state, and its id as a git blob."""
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)
    return hashlib.sha256(data).hexdigest(), git.hexdigest()


@dataclass(frozen=True)
class Revision:
    """One revision of one repository."""

    kind: str
    name: str
    folder: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name in the repository -> file."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    @cached_property
    def commit(self) -> str:
        """Its commit: a hash of all names and contents."""
        rows = [[name, self.digests(name)] for name in self.files]
        text = json.dumps([self.kind, self.name, rows])
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def digests(self, name: str) -> tuple[str, str]:
        """SHA-256 and git blob id of a file."""
        path = self.files[name]
        now = path.stat()
        return _digests(path, now.st_size, now.st_mtime_ns)

    def facts(self, *, private: bool, gated: bool) -> dict[str, Any]:
        """What the hub says of the repository at this revision."""
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": self.commit,
            "lastModified": _DAY,
            "createdAt": _DAY,
            "private": private,
            "gated": "manual" if gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": file} for file in self.files],
        }

    def entry(self, name: str) -> dict[str, Any]:
        """A file in a listing."""
        sha256, blob = self.digests(name)
        size = self.files[name].stat().st_size
        found: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": blob}
        if name.endswith(LARGE):
            found["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
        return found

    def listing(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below a folder."""
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for name in self.files:
            if not name.startswith(prefix):
                continue
            *folders, _ = name[len(prefix) :].split("/")
            for depth in range(len(folders) if recursive else min(1, len(folders))):
                path = prefix + "/".join(folders[: depth + 1])
                found[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            if recursive or not folders:
                found[name] = self.entry(name)
        if not found:
            raise Refused(404, "EntryNotFound", f"{below} does not exist")
        return list(found.values())
