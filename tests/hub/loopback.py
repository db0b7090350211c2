"""A model hub on 127.0.0.1 that serves folders, and fails on request.

It speaks the part of the hub's HTTP interface that reading needs: repository facts, listings, path
facts, and files with redirects, ranges and hashes; :mod:`hub.writing` takes what is written. A
repository is a folder with one folder for each revision in it (a ``/`` in a revision is written
``--``)::

    ROOT/models/facebook/opt-125m/main/config.json
    ROOT/datasets/haonan-li/cmmlu/refs--convert--parquet/anatomy/test/0000.parquet

Example::

    with LoopbackHub(root) as hub:
        hub.gated.add("models/meta-llama/Llama-2-7b-hf")
        hub.fails("datasets/Rowan/hellaswag", status=503, times=2)
        ...                                     # with HF_ENDPOINT=hub.url in a child process
        assert hub.fetched("model.safetensors") == 1
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub.exchange import Asked, Fault
from hub.repository import LARGE, Refused, Revision
from hub.writing import Writing

_BLOCK = 1 << 16
_ENDS = ("cut", "reset")


@dataclass
class LoopbackHub:
    """The hub, serving from a thread for as long as its ``with`` block lasts.

    Attributes:
        root: Folder with ``models`` and ``datasets``.
        gated: Repositories (``models/ORG/NAME``) whose files need a token that is accepted.
        private: Repositories that do not exist for others.
        tokens: Accepted token -> the gated and private repositories it may read.
        moved: Old repository -> new one.
        faults: What goes wrong, tried in order.
        asked: Every request so far.
    """

    root: Path
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is written yet."""
        self.writing = Writing(self.root)

    def begin(self, root: Path) -> None:
        """Serve another folder at the same address, and forget all that was."""
        vars(self).update(vars(LoopbackHub(root)))

    def __enter__(self) -> LoopbackHub:
        """Start serving on a free port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and free the port."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.port}"

    def fails(self, match: str, **fault: Any) -> Fault:
        """Let requests that match go wrong; see :class:`Fault`."""
        self.faults.append(Fault(match, **fault))
        return self.faults[-1]

    def fetched(self, name: str) -> int:
        """How often the content of files of this name was sent, whole or in part."""
        return sum(
            1
            for one in self.asked
            if one.method == "GET" and one.sent and urlsplit(one.path).path.endswith(name)
        )

    def revision(self, kind: str, name: str, revision: str) -> Revision:
        """A repository at a branch or a commit."""
        folder = self.root / kind / name
        if not folder.is_dir():
            raise Refused(404, "RepoNotFound", "Repository not found")
        named = folder / revision.replace("/", "--")
        if named.is_dir():
            return Revision(kind, name, named)
        for path in folder.iterdir():
            found = Revision(kind, name, path)
            if found.commit == revision:
                return found
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def admit(self, repository: str, token: str, *, content: bool) -> None:
        """Refuse those who may not read."""
        if token and token not in self.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if repository in self.tokens.get(token, ()):
            return
        if repository in self.private:
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repository in self.gated:
            words = f"Access to {repository.partition('/')[2]} is restricted."
            raise Refused(403 if token else 401, "GatedRepo", words)

    def fault(self, request: str) -> Fault | None:
        """The fault of a request, counted."""
        for one in self.faults:
            if one.times != 0 and re.search(one.match, request):
                if one.times is not None:
                    one.times -= 1
                return one
        return None


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    """A class whose instances answer the requests of one connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are kept in ``hub.asked``."""

        def _answer(self) -> None:
            self.status, self.sent, asked = 0, 0, hub.asked
            self.payload = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            self.wrong = hub.fault(f"{self.command} {unquote(self.path)}")
            try:
                self._go_wrong()
                self._route(urlsplit(self.path))
            except Refused as refused:
                self._refuse(refused)
            except OSError:
                self.close_connection = True
            finally:
                asked.append(Asked(self.command, self.path, self.status, self.sent))

        def _go_wrong(self) -> None:
            wrong = self.wrong
            if wrong is not None and wrong.kind == "status":
                raise Refused(wrong.status, wrong.code, "It does not work on purpose.")
            if wrong is not None and wrong.kind == "slow":
                time.sleep(wrong.seconds)
            if wrong is not None and wrong.kind in _ENDS and not wrong.after:
                self._end(wrong)

        def _route(self, url: Any) -> None:
            path = unquote(url.path)
            request = f"{self.command} {path}"
            written = hub.writing.answer(request, self.payload, self.token, hub.url)
            if written is not None:
                self._json(written)
            elif path == "/":
                self._send(200, b"a hub", {})
            elif match := re.fullmatch(r"/content/(\w+)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
                kind, name, commit, file = match.groups()
                found = hub.revision(kind, name, commit)
                self._content(found.files[file], f'"{found.digests(file)[0]}"')
            elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(/.*)?", path):
                self._api(*match.groups(""), parse_qs(url.query))
            elif match := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/(.+)", path):
                self._file(match[1] or "models", match[2], match[3])
            else:
                raise Refused(404, "", "Not Found")

        def _api(self, kind: str, name: str, rest: str, query: dict[str, list[str]]) -> None:
            if self._moved(kind, name):
                return
            hub.admit(f"{kind}/{name}", self.token, content=False)
            what, _, more = rest.lstrip("/").partition("/")
            if what in ("tree", "paths-info"):
                revision, below = self._parted(kind, name, more)
            else:
                revision, below = self._found(kind, name, more or "main"), ""
            if what == "tree":
                recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
                self._json(revision.listing(below.strip("/"), recursive))
            elif what == "paths-info":
                self._json([revision.entry(p) for p in self._paths() if p in revision.files])
            elif what in ("", "revision"):
                repository = f"{kind}/{name}"
                private, gated = repository in hub.private, repository in hub.gated
                self._json(revision.facts(private=private, gated=gated))
            else:
                raise Refused(404, "", "Not Found")

        def _paths(self) -> list[str]:
            if "json" in self.headers.get("Content-Type", ""):
                return list(json.loads(self.payload)["paths"])
            return parse_qs(self.payload.decode()).get("paths", [])

        def _parted(self, kind: str, name: str, more: str) -> tuple[Revision, str]:
            """A revision, whose name may have slashes, and the path behind it."""
            parts = more.split("/")
            for n in range(len(parts), 0, -1):
                folder = hub.root / kind / name / "--".join(parts[:n])
                if folder.is_dir():
                    return self._found(kind, name, "/".join(parts[:n])), "/".join(parts[n:])
            return self._found(kind, name, parts[0]), "/".join(parts[1:])

        def _found(self, kind: str, name: str, revision: str) -> Revision:
            try:
                return hub.revision(kind, name, revision)
            except Refused as refused:
                if refused.code == "RepoNotFound" and not self.token:
                    refused.status = 401  # strangers are not told what exists
                raise

        def _moved(self, kind: str, name: str) -> bool:
            new = hub.moved.get(f"{kind}/{name}")
            if new is not None:
                place = self.path.replace(name, new.partition("/")[2], 1)
                self._send(307, b"", {"Location": place})
            return new is not None

        def _file(self, kind: str, name: str, more: str) -> None:
            if self._moved(kind, name):
                return
            revision, file = self._parted(kind, name, more)
            hub.admit(f"{kind}/{name}", self.token, content=file != "README.md")
            facts = {"X-Repo-Commit": revision.commit, "Accept-Ranges": "bytes"}
            if file not in revision.files:
                self._refuse(Refused(404, "EntryNotFound", "Entry not found"), facts)
                return
            sha256, blob = revision.digests(file)
            if not file.endswith(LARGE):
                self._content(revision.files[file], f'"{blob}"', facts)
                return
            place = f"/content/{kind}/{name}/{revision.commit}/{quote(file)}"
            size = revision.files[file].stat().st_size
            facts |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
            # Another name of this machine: to a client another host, as the hub's own is.
            self._send(302, b"", {**facts, "Location": f"http://localhost:{hub.port}{place}"})

        def _content(self, path: Path, etag: str, more: dict[str, str] | None = None) -> None:
            data = path.read_bytes()
            if self.wrong is not None and self.wrong.kind == "damage" and data:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            headers = {**(more or {}), "ETag": etag, "Content-Type": "application/octet-stream"}
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
            if asked is None:
                self._send(200, data, headers)
                return
            first, last = asked.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            place = f"bytes {start}-{stop - 1}/{len(data)}"
            self._send(206, data[start:stop], {**headers, "Content-Range": place})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _refuse(self, refused: Refused, more: dict[str, str] | None = None) -> None:
            headers = {**(more or {}), "X-Error-Message": str(refused)}
            headers["Content-Type"] = "application/json"
            if refused.code:
                headers["X-Error-Code"] = refused.code
            if refused.status == 429:
                headers["Retry-After"] = "1"
            body = {"error": str(refused), **refused.more}
            self._send(refused.status, json.dumps(body).encode(), headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.status = status
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            for block in self._blocks(body):
                self.wfile.write(block)
                self.sent += len(block)

        def _blocks(self, body: bytes) -> Iterator[bytes]:
            wrong = self.wrong
            for start in range(0, len(body), _BLOCK):
                if wrong is not None and wrong.kind in _ENDS and start + _BLOCK > wrong.after:
                    yield body[start : wrong.after]
                    self._end(wrong)
                yield body[start : start + _BLOCK]

        def _end(self, wrong: Fault) -> None:
            """End the connection, without the goodbye for a reset."""
            self.wfile.flush()
            if wrong.kind == "reset":
                at_once = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                self.connection.close()
            raise ConnectionError("ended on purpose")

    return Handler
