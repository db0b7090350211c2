"""What goes wrong with a hub: what may pass is tried again after a while, the rest is said."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from datasets import Dataset
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model, tiny_tokenizer

_AT_ONCE = """
import hashlib, json, sys, time, types
from huggingface_hub import constants
from streamline.errors import StreamlineError
from streamline.sources.hub import failures, kept_rows

constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.2
constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what is lost of a connection that ends
time.sleep = lambda seconds: None
waits = []  # of this package; the clients of the hub have their own
failures.time = kept_rows.time = types.SimpleNamespace(sleep=waits.append)
found = {}
for name in json.loads(sys.argv[1]):
    waits.clear()
    try:
        said = hashlib.sha256(read(f"some/{name}")).hexdigest()
    except StreamlineError as error:
        said = str(error)
    found[name] = said, list(waits)
print(json.dumps(found))
"""
_MODEL = """
from streamline.sources.hub.model_files import fetch_weights, model_explained, require_access
from streamline.sources.models import load_tokenizer
from streamline.sources.names import resolve_model

def read(name):
    source = resolve_model(name)
    if "tokenizer" in name:
        made = load_tokenizer(name)
        return (made.backend_tokenizer.to_str() + str(made.eos_token)).encode()
    with model_explained(source):
        require_access(source.location, source.revision)
        folder = fetch_weights(source.location, source.revision)
    return (folder / "model.safetensors").read_bytes()
"""
_ROWS = """
from streamline.sources.hub.commits import dataset_commit
from streamline.sources.hub.kept_rows import kept_rows as streamed
from streamline.sources.hub.rows import load_rows

def read(name):
    name, _, revision = name.partition("@")
    wanted = {"split": "train", "columns": ("text",)}
    if "streamed" in name:
        rows = streamed(name, **wanted)
    else:
        rows = load_rows(name, revision=revision or dataset_commit(name), **wanted)
    return "".join(row["text"] for row in rows).encode()
"""

_SOON = ("tried several times", "Check the network")
_HEAD, _GET = "HEAD .*some/{}/.*{}", "GET /content/.*some/{}/"
#: Name of a repository -> what goes wrong with the requests for it, until it passes.
_PASSING: dict[str, dict[str, Any]] = {
    "failing": {"match": _HEAD, "status": 503, "times": 1},
    "busy": {"match": _HEAD, "status": 429, "times": 2},
    "late": {"match": _GET, "kind": "slow", "seconds": 0.5, "times": 1},
    "cut": {"match": _GET, "kind": "cut", "after": 200_000, "times": 1},
    "reset": {"match": _GET, "kind": "reset", "after": 200_000, "times": 1},
    "damaged": {"match": _GET, "kind": "damage", "times": 1},
}
#: What stays, and words of what is said of it.
_LASTING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unreachable": ({"match": "some/{}/?", "kind": "reset"}, _SOON),
    "always-failing": ({"match": _HEAD, "status": 503}, _SOON),
    "always-busy": (
        {"match": _HEAD, "status": 429},
        ("asks to wait (429), tried several times", "hf auth login"),
    ),
    "always-late": ({"match": _GET, "kind": "slow", "seconds": 0.5}, _SOON),
    "always-cut": ({"match": _GET, "kind": "cut"}, _SOON),
    "always-reset": ({"match": _GET, "kind": "reset"}, _SOON),
    "always-damaged": (
        {"match": _GET, "kind": "damage"},
        ("came damaged from the hub, tried several times", "SHA-256"),
    ),
}
#: What will not pass, and words of what is said of it.
_REFUSED = {
    "gated": ("is gated. Accept its terms at", "some/gated", "hf auth login"),
    "private": ("'some/private' that this machine may read", "hf auth login"),
    "missing": ("'some/missing' that this machine may read",),
    "main@gone": ("has no revision 'gone' on the hub", "some/main"),
}
#: The same of rows that are read as a stream.
_STREAMED: dict[str, dict[str, Any]] = {
    "streamed-failing": {"match": _GET, "status": 503, "times": 1},
    "streamed-reset": {"match": _GET, "kind": "reset", "after": 200_000, "times": 1},
    "streamed-always-failing": {"match": _GET, "status": 503},
}
#: Data that are there and cannot be read.
_UNREADABLE = {
    "renamed": ("some/renamed has no field 'text'", "but 'words'", "--data-revisions"),
    "streamed-renamed": ("some/streamed-renamed has no field 'text'", "but 'words'"),
    "broken": (
        "some/broken, split train",
        "could not be read from the hub",
        "Parquet",
        "--data-dir",
    ),
}
_NAMES = (*_PASSING, *_LASTING, "gated", "private", "main")


def _wrong(hub: LoopbackHub, kind: str, file: str) -> None:
    """Switch every failure on, each for a repository of its own."""
    for name in ("gated", "private"):
        getattr(hub, name).add(f"{kind}/some/{name}")
    for name, fault in (_PASSING | {name: fault for name, (fault, _) in _LASTING.items()}).items():
        hub.fails(**fault | {"match": fault["match"].format(name, file)})


def _found(child: Child, hub: LoopbackHub, reader: str, *names: str) -> dict[str, Any]:
    done = child(reader + _AT_ONCE, hub, names)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _check(found: dict[str, Any], content: bytes, kind: str) -> None:
    """What may pass has passed, the rest has its reason, the name, and what to do."""
    whole = hashlib.sha256(content).hexdigest()
    assert {name: found[name][0] for name in _PASSING} == dict.fromkeys(_PASSING, whole)
    for name, (_, words) in _LASTING.items():
        said, waits = found[name]
        assert [word for word in (f"some/{name}", *words) if word not in said] == [], said
        assert waits[:3] == [1.0, 4.0, 15.0], name
    for name, words in _REFUSED.items():
        said, waits = found[name]
        assert [word for word in (kind, *words) if word not in said] == [], said
        assert waits == [], name


@pytest.mark.slow
def test_failures_of_models(hub: LoopbackHub, child: Child) -> None:
    content = bytes(range(251)) * 1200
    for name in _NAMES:
        folder = hub.root / "models" / "some" / name / "main"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(content)
    _wrong(hub, "models", "config.json")
    tokenizer, name = tiny_tokenizer(), "tokenizer-failing"
    tokenizer.save_pretrained(hub.root / "models" / "some" / name / "main")
    tiny_model("llama").config.save_pretrained(hub.root / "models" / "some" / name / "main")
    hub.fails(f"GET .*{name}/.*/tokenizer.json", kind="reset", after=10, times=1)
    hub.fails(f"HEAD .*{name}/.*/tokenizer_config.json", status=503, times=8)
    found = _found(child, hub, _MODEL, *_PASSING, *_LASTING, *_REFUSED, name)
    _check(found, content, "model")
    made = tokenizer.backend_tokenizer.to_str() + str(tokenizer.eos_token)
    assert found[name][0] == hashlib.sha256(made.encode()).hexdigest(), (
        "a file that comes late is not one that is missing"
    )
    sent = [one.sent for one in hub.asked if one.sent and "/content/models/some/cut/" in one.path]
    assert len(sent) == 2 and sum(sent) == len(content), "what had come is not fetched again"


@pytest.mark.slow
def test_failures_of_data(hub: LoopbackHub, child: Child) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(500).hex() for _ in range(600)]
    for name in (*_NAMES, *_STREAMED, *_UNREADABLE):
        folder = hub.root / "datasets" / "some" / name / "main"
        folder.mkdir(parents=True)
        rows = Dataset.from_dict({"words" if "renamed" in name else "text": texts})
        rows.to_parquet(str(folder / "train.parquet"))
    file = hub.root / "datasets/some/broken/main/train.parquet"
    file.write_bytes(b"no rows" * 1000)
    _wrong(hub, "datasets", "train.parquet")
    for name, fault in _STREAMED.items():
        hub.fails(**fault | {"match": fault["match"].format(name, "")})
    content = "".join(texts).encode()
    names = (*_PASSING, *_LASTING, *_REFUSED, *_STREAMED, *_UNREADABLE)
    found = _found(child, hub, _ROWS, *names)
    _check(found, content, "ata set")
    for name, words in _UNREADABLE.items():
        assert [word for word in words if word not in found[name][0]] == [], found[name]
    whole = hashlib.sha256(content).hexdigest()
    assert [found[name][0] for name in _STREAMED][:2] == [whole, whole]
    said = found["streamed-always-failing"][0]
    assert [word for word in ("some/streamed", *_SOON) if word not in said] == [], said
