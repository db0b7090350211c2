"""Checkpoints and results are written to the hub, and read from it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub.loopback import LoopbackHub
from huggingface_hub import ModelCard

from streamline.checkpoints.checkpoint import save
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.report.names import COMMANDS
from streamline.run.folder import keep_settings
from streamline.run.reporting import report_run
from streamline.testing.models import tiny_model, tiny_tokenizer

_PUSH = """
import json, sys
from streamline.cli.main import main
main(json.loads(sys.argv[1]))
"""
_LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("me/short", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("me/short", trust_remote_code=True)
with torch.no_grad():
    print(json.dumps(model(torch.arange(1, 9)[None]).logits[0, -1].tolist()))
"""


@pytest.fixture
def writing(hub: LoopbackHub) -> LoopbackHub:
    """A hub on which the token ``good`` may write what belongs to ``me``."""
    hub.writing.writers["good"] = {"me"}
    return hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    span = Span(1, 3)
    pruned = Pruned(Plan.replace(4, span, "ffn"), {1: make("ffn", decoder, span)})
    facts = {"cell": {"model": "opt-1.3b", "method": "x", "sparsity": 0.3}}
    folder = tmp_path_factory.mktemp("made") / "short"
    return save(pruned, decoder, tiny_tokenizer(), folder, facts, verify=False)


def test_a_checkpoint_is_a_model_that_loads_from_the_hub(writing, child, checkpoint):
    done = child(_PUSH, writing, ["push", str(checkpoint), "me/short"], HF_TOKEN="good")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{writing.url}/me/short"]
    place = writing.root / "models" / "me" / "short" / "main"
    names = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in place.iterdir()} == names | {".gitattributes"}
    assert all((place / name).read_bytes() == (checkpoint / name).read_bytes() for name in names)
    assert ModelCard.load(place / "README.md").data.base_model == "facebook/opt-1.3b"
    assert writing.writing.commits == ["Upload short from streamline-bench"]
    loaded = child(_LOAD, writing)
    assert loaded.returncode == 0, loaded.stderr
    again = child(_PUSH, writing, ["push", str(checkpoint), "me/short"], HF_TOKEN="good")
    assert again.returncode == 0, again.stderr


def test_results_are_a_data_set_without_what_a_run_keeps(writing, child, run_copy):
    folder = run_copy
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "cache" / "secret.safetensors").write_bytes(b"x")
    done = child(_PUSH, writing, ["push", str(folder), "me/results", "--private"], HF_TOKEN="good")
    assert done.returncode == 0, done.stderr
    place = writing.root / "datasets" / "me" / "results" / "main"
    assert (place / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    assert not (place / "cache").exists()
    calibration = "calibration/0123abcd/calibration.safetensors"
    assert (place / calibration).read_bytes() == (folder / "cache" / calibration).read_bytes()
    assert len(writing.writing.commits) == 1
    assert writing.writing.private == {"me/results"}
    assert "streamline-bench" in (place / "README.md").read_text(encoding="utf-8")


_FETCH = """
import json, sys
from huggingface_hub import snapshot_download
snapshot_download("me/results", repo_type="dataset", local_dir=json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_the_report_of_what_was_pushed_is_the_run_s(writing, child, run_copy, tmp_path):
    entry = {"time": "2026-11-27T00:00:00+00:00", "argv": ["--suite", "mine"], "version": "0.1.0"}
    (run_copy / COMMANDS).write_text(json.dumps([entry]), encoding="utf-8")
    keep_settings(run_copy, {"calibration": {"n_samples": 7, "length": 100}})
    again = tmp_path / "fetched" / run_copy.name
    pushed = child(_PUSH, writing, ["push", str(run_copy), "me/results"], HF_TOKEN="good")
    fetched = child(_FETCH, writing, str(again))
    assert (pushed.returncode, fetched.returncode) == (0, 0), pushed.stderr + fetched.stderr
    assert not (again / "report.html").exists()
    ours, theirs = (report_run(folder).read_text("utf-8") for folder in (run_copy, again))
    assert ours == theirs
    shown = ("streamline-bench --suite mine", "700 tokens", "cosine-", "loss-")
    assert all(what in ours for what in shown)


_REFUSED = """
import contextlib, io, json, os, sys
from streamline.cli.main import main
for token, arguments in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            main(arguments)
    except SystemExit as ended:
        print(json.dumps([ended.code, " ".join(words.getvalue().split())]))
"""


def test_what_cannot_be_written_is_told_before_any_work(writing, child, tmp_path):
    prune = ["prune", "no-such-model", "--method", "shortgpt", "--sparsity", "0.3"]
    prune += ["--out", str(tmp_path / "out"), "--push-to-hub"]
    (tmp_path / "empty").mkdir()
    cases = {
        "hf auth login": ("", [*prune, "me/short"]),
        "a token that may write there": ("good", [*prune, "them/short"]),
        "give OWNER/NAME": ("good", [*prune, "short"]),
        "'me/a/b' cannot name a repository": ("good", [*prune, "me/a/b"]),
        "results.json": ("good", ["push", str(tmp_path / "empty"), "me/x"]),
    }
    done = child(_REFUSED, writing, list(cases.values()))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in found] == [2] * len(cases)
    assert [m for (_, words), m in zip(found, cases, strict=True) if m not in words] == []
    assert not (tmp_path / "out").exists()
    assert not (writing.root / "models").exists() and not (writing.root / "datasets").exists()
