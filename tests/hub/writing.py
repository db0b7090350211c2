"""What the loopback hub does with what is written to it: repositories, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from hub.repository import LARGE, Refused

_REPOSITORY = r"/api/(models|datasets)/([^/]+/[^/]+)"


class Writing:
    """Takes what clients write, for tokens that may.

    Attributes:
        root: Folder with ``models`` and ``datasets``.
        writers: Token -> owners of the repositories it may write.
        large: Contents of large files that were uploaded, by SHA-256.
        commits: Messages of commits.
        private: Repositories that were made for their owners alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writers: dict[str, set[str]] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.private: set[str] = set()

    def answer(self, request: str, payload: bytes, token: str, url: str) -> Any:
        """JSON to answer a request with; None if it writes nothing.

        Args:
            request: ``METHOD /path``.
            payload: Its body.
            token: Of its sender.
            url: The hub's address.
        """
        if match := re.fullmatch(r"PUT /upload/(\w+)", request):
            if hashlib.sha256(payload).hexdigest() != match[1]:
                raise Refused(400, "", "The content is not what was announced")
            self.large[match[1]] = payload
            return {}
        if request == "POST /api/validate-yaml":
            return self._validated(json.loads(payload))
        if request == "POST /api/repos/create":
            return self._created(json.loads(payload), token, url)
        if match := re.fullmatch(f"POST {_REPOSITORY}/preupload/main", request):
            self._admit(match[2], token)
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(payload)["files"]
            ]
            return {"files": files}
        if match := re.fullmatch(r"POST /(?:datasets/)?(.+)\.git/info/lfs/objects/batch", request):
            self._admit(match[1], token)
            objects = json.loads(payload)["objects"]
            for one in objects:
                if one["oid"] not in self.large:
                    one["actions"] = {"upload": {"href": f"{url}/upload/{one['oid']}"}}
            return {"transfer": "basic", "objects": objects}
        if match := re.fullmatch(f"POST {_REPOSITORY}/commit/main", request):
            self._admit(match[2], token)
            place = self.root / match[1] / match[2] / "main"
            prefix = "datasets/" if match[1] == "datasets" else ""
            return self._committed(place, payload, f"{url}/{prefix}{match[2]}")
        return None

    def _admit(self, name: str, token: str) -> None:
        if name.partition("/")[0] not in self.writers.get(token, ()):
            raise Refused(403 if token else 401, "", "You may not write to this repository")

    def _created(self, wanted: dict[str, Any], token: str, url: str) -> dict[str, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        self._admit(name, token)
        kind = f"{wanted.get('type') or 'model'}s"
        place = self.root / kind / name / "main"
        prefix = "datasets/" if kind == "datasets" else ""
        if place.is_dir():
            message = "You already created this repository"
            raise Refused(409, "", message, url=f"{url}/{prefix}{name}")
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.private.add(name)
        place.mkdir(parents=True)
        (place / ".gitattributes").write_text("*.safetensors filter=lfs\n", encoding="utf-8")
        return {"url": f"{url}/{prefix}{name}", "name": name, "id": "0" * 24}

    def _validated(self, asked: dict[str, Any]) -> dict[str, Any]:
        _, head, _ = asked["content"].split("---\n", 2)
        data = yaml.safe_load(head)
        index = data.get("model-index", []) if isinstance(data, dict) else None
        if index is None or any(not one["name"] or not one["results"] for one in index):
            raise Refused(400, "", "Invalid metadata in README.md")
        return {"errors": [], "warnings": []}

    def _committed(self, place: Path, payload: bytes, url: str) -> dict[str, Any]:
        for line in payload.splitlines():
            what = json.loads(line)
            value = what["value"]
            if what["key"] == "header":
                self.commits.append(value["summary"])
                continue
            large = what["key"] == "lfsFile"
            content = self.large[value["oid"]] if large else base64.b64decode(value["content"])
            file = place / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        oid = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
        return {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "success": True}
