"""The loopback hub is read by the hub's own client as the real one is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

_READS = """
import json, sys
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.errors import RevisionNotFoundError

folder = snapshot_download("some/model")
weights = open(folder + "/model.safetensors", "rb").read()
older = json.load(open(hf_hub_download("some/model", "config.json", revision="refs/pr/1")))
files = HfFileSystem()
with files.open("some/model/model.safetensors") as stream:
    stream.seek(1000)
    piece = stream.read(50)
errors = []
for call, expected in (
    (lambda: HfApi().model_info("no/model"), RepositoryNotFoundError),
    (lambda: HfApi().model_info("some/model", revision="no"), RevisionNotFoundError),
    (lambda: hf_hub_download("some/model", "no.txt"), EntryNotFoundError),
):
    try:
        call()
    except expected as error:
        errors.append(type(error).__name__)
print(json.dumps({
    "weights": weights.hex(),
    "older": older,
    "piece": piece.hex(),
    "listed": sorted(files.find("datasets/some/data", detail=False)),
    "same": HfApi().model_info("old/name").sha == HfApi().model_info("some/model").sha,
    "errors": errors,
}))
"""

_GATED = """
import sys, json
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError

try:
    hf_hub_download("some/model", "config.json")
    print("open")
except GatedRepoError:
    print("gated")
print(hf_hub_download("some/model", "config.json", token="good"))
"""


@pytest.fixture
def filled(hub: LoopbackHub) -> LoopbackHub:
    """A hub with a model in two revisions and a data set."""
    model = hub.root / "models" / "some" / "model"
    for revision, text in (("main", "{}"), ("refs--pr--1", '{"v": 1}')):
        (model / revision).mkdir(parents=True)
        (model / revision / "config.json").write_text(text, encoding="utf-8")
    (model / "main" / "model.safetensors").write_bytes(bytes(range(256)) * 1200)
    data = hub.root / "datasets" / "some" / "data" / "main" / "deep" / "er"
    data.mkdir(parents=True)
    (data / "rows.json").write_text("[]", encoding="utf-8")
    hub.moved["models/old/name"] = "models/some/model"
    return hub


@pytest.mark.parametrize("fault", [None, "cut"])
def test_its_client_reads_it(filled: LoopbackHub, child: Child, fault: str | None) -> None:
    if fault == "cut":
        filled.fails(r"GET /content/.*safetensors", kind="cut", after=100_000, times=1)
    done = child(_READS, filled)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert bytes.fromhex(found["weights"]) == bytes(range(256)) * 1200
    assert bytes.fromhex(found["piece"]) == (bytes(range(256)) * 1200)[1000:1050]
    assert found["older"] == {"v": 1}
    assert found["listed"] == ["datasets/some/data/deep/er/rows.json"]
    assert found["same"]
    assert len(found["errors"]) == 3


def test_a_gated_model_needs_an_accepted_token(filled: LoopbackHub, child: Child) -> None:
    filled.gated.add("models/some/model")
    filled.tokens["good"] = {"models/some/model"}
    done = child(_GATED, filled)
    assert done.returncode == 0, done.stderr
    gated, path = done.stdout.split()
    assert gated == "gated"
    assert Path(path).is_file()
