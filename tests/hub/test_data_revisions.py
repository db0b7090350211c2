"""A revision of a data set that is asked for is resolved once, and its rows are read."""

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


@pytest.mark.slow
def test_questions_are_read_at_the_revision_that_is_asked_for(
    hub: LoopbackHub, child: Child, published: Path, tmp_path: Path
) -> None:
    place = hub.root / "datasets/baber/piqa"
    place.parent.mkdir(parents=True)
    shutil.copytree(published / "datasets/baber/piqa", place)
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_model("llama", n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    words = f"--models {folder} --methods dense --tasks piqa --limit 4 --perplexity none"
    plain = [*words.split(), "--efficiency", "off", "--device", "cpu", "--out", str(out)]

    def settled() -> str:
        sources = json.loads((out / "run.json").read_text())["sources"]["tasks"]
        return str(sources["piqa"]["revision"])

    def refused(*flags: str) -> str:
        done = child(_RUN, hub, [*plain, *flags])
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    assert "'baber/piqa' has no revision 'v9'" in refused("--data-revisions", "baber/piqa@v9")
    said = refused("--data-revisions", "allenai/openbookqa@main")
    assert "which this run does not read" in said or "has no revision" in said
    assert "names no revision; write ORG/NAME@REVISION" in refused("--data-revisions", "piqa")
    assert not (out / "run.json").exists()

    done = child(_RUN, hub, plain)
    assert done.returncode == 0, done.stderr
    first = settled()
    (file,) = place.rglob("*validation*")
    kept = file.read_bytes()
    file.write_bytes(kept + b" ")  # the branch moves on
    asked = [*plain, "--data-revisions", f"baber/piqa@{first}"]
    again = child(_RUN, hub, asked, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert settled() == first
    assert "done already" in again.stderr + again.stdout
