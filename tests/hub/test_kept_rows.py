"""What is read of a text on the hub is kept: read once, checked, and read on where it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

_READ = """
import itertools, json, sys
from streamline.errors import StreamlineError
from streamline.sources.hub import failures, kept_rows
from streamline.sources.hub.commits import dataset_commit

failures.WAITS = (0.0, 0.0)
kept_rows._ROWS = 50
found = []
for n, seed in json.loads(sys.argv[1]):
    rows = kept_rows.kept_rows(
        "DKYoon/SlimPajama-6B", split="train", columns=("text", "meta"), seed=seed, buffer=100
    )
    try:
        found.append([row["text"] for row in itertools.islice(rows, n)])
    except StreamlineError as error:
        found.append(str(error))
    rows.close()
print(json.dumps([found, dataset_commit("DKYoon/SlimPajama-6B", kept=True)]))
"""


@pytest.fixture
def pajama(hub: LoopbackHub, published: Path) -> LoopbackHub:
    """A hub with one text of 600 documents."""
    place = hub.root / "datasets" / "DKYoon" / "SlimPajama-6B"
    shutil.copytree(published / "datasets" / "DKYoon" / "SlimPajama-6B", place)
    return hub


def _read(
    child: Child, hub: LoopbackHub, *asked: tuple[int, int | None], **environment: str
) -> tuple[list[list[str] | str], str]:
    done = child(_READ, hub, asked, **environment)
    assert done.returncode == 0, done.stderr
    found, commit = json.loads(done.stdout.splitlines()[-1])
    return found, commit


@pytest.mark.slow
def test_rows_are_read_once_and_then_from_what_was_kept(
    pajama: LoopbackHub, child: Child, tmp_path: Path
) -> None:
    (whole, first, twice), commit = _read(child, pajama, (9_999, None), (120, 0), (120, 0))
    assert len(whole) == 600 and len(set(whole)) == 600
    assert first == twice and set(first) < set(whole) and first != whole[:120]
    pieces = sorted((tmp_path / "cache" / "texts" / "hub").rglob("*.json"))
    assert {path.parent.parent.name for path in pieces} == {commit}

    asked = len(pajama.asked)
    offline = {"HF_HUB_OFFLINE": "1"}
    (again, part, more), same = _read(child, pajama, (9_999, None), (70, 0), (121, 0), **offline)
    assert (again, part, same) == (whole, first[:70], commit)
    assert isinstance(more, str) and "HF_HUB_OFFLINE is set" in more
    assert len(pajama.asked) == asked

    (longer,), _ = _read(child, pajama, (300, 0))
    assert longer[:120] == first and len(set(longer)) == 300
    (pajama.root / "datasets" / "DKYoon" / "SlimPajama-6B" / "main" / "more.txt").write_text("")
    asked = len(pajama.asked)
    (moved,), other = _read(child, pajama, (10, None))
    assert moved == whole[:10] and other != commit
    assert any("parquet" in one.path for one in pajama.asked[asked:])
