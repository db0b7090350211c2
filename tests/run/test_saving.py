"""Checkpoints of a run's cells: what ``--save`` and ``export`` take is what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from streamline.checkpoints.checkpoint import load
from streamline.checkpoints.folder import CLAIM
from streamline.checkpoints.info import read_info
from streamline.cli.main import main
from streamline.errors import ConfigError
from streamline.report.findings.uncertainty import relative
from streamline.report.table import percent
from streamline.results.record_file import recorded, upsert
from streamline.run.pipeline import evaluate_model, run
from streamline.run.saving import save
from streamline.run.saving.save import best_cells, export_cell
from streamline.training.state import TrainingState

METHODS = "random-layers,shortgpt,llm-streamline-ffn,llm-pruner"


@pytest.fixture(scope="module")
def done(tmp_path_factory, config) -> Path:
    """A finished run with a trained, a fine-tuned, a dropped and a resized cell."""
    out = tmp_path_factory.mktemp("done")
    run(config(out, methods=METHODS))
    run(config(out, methods="shortgpt", recovery="none,lora"))
    return out


@pytest.fixture
def untrained(monkeypatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be trained again")

    monkeypatch.setattr(TrainingState, "update", never)


@pytest.mark.parametrize(
    "cell",
    ["llm-streamline-ffn@0.3", "llm-pruner@0.3", "shortgpt@0.3,recovery=lora"],
)
def test_an_exported_cell_answers_as_it_was_measured(done, tmp_path, config, untrained, cell):
    folder = tmp_path / "exported"
    facts = export_cell(f"{done}:{cell}", folder, verify=False, device="cpu")
    method = cell.partition("@")[0]
    wanted = next(
        r for r in recorded(done) if r.method == method and r.recovery == facts["cell"]["recovery"]
    )
    assert facts["key"] == wanted.key
    record = evaluate_model(
        str(folder), out=tmp_path / "again.json", config=config(tmp_path / "x", models=str(folder))
    )
    assert record.tasks["piqa"].value == wanted.tasks["piqa"].value
    assert record.summary.perplexity == pytest.approx(wanted.summary.perplexity, rel=1e-6)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| piqa | acc | {100 * wanted.tasks['piqa'].value:.1f}" in card
    dense = next(r for r in recorded(done) if r.method == "dense")
    kept = relative(wanted, dense)
    assert kept is not None and kept.stderr is not None
    assert f"- relative to the base model: {percent(kept.value, kept.stderr)} %" in card


def test_best_is_the_lowest_held_out_perplexity_at_each_sparsity(done, config, untrained):
    settings = config(done, methods=METHODS, save="best")
    records = run(settings)
    pruned = [record for record in records if record.sparsity]
    (text,) = pruned[0].summary.perplexity
    best = min(pruned, key=lambda record: record.summary.perplexity[text])
    (folder,) = (done / "checkpoints").iterdir()
    assert read_info(folder).provenance["key"] == best.key
    model, _, _ = load(folder)
    assert torch.isfinite(model(torch.arange(9)[None]).logits).all()


def test_what_is_there_is_not_saved_again(done, config, monkeypatch):
    out = done
    run(config(out, methods=METHODS, save="best"))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no model is needed")

    monkeypatch.setattr(save, "load_dense", never)
    run(config(out, methods=METHODS, save="best"))


def test_answers_decide_nothing(done):
    records = [r for r in recorded(done) if r.sparsity and r.recovery == "none"]
    (text,) = records[0].summary.perplexity
    (before,) = best_cells(records, text)
    others = [
        r.model_copy(
            update={"tasks": {n: t.model_copy(update={"value": 1.0}) for n, t in r.tasks.items()}}
        )
        for r in records
        if r is not before
    ]
    assert best_cells([*others, before], text) == [before]
    assert best_cells(records, "another-heldout") == []


def test_what_is_not_there_any_more_is_refused(done, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    settings = json.loads((out / "run.json").read_text())
    for source, message in {
        f"{out}:dense": "is the dense model",
        f"{out}:sleb@0.3": "no finished cells fit",
        f"{tmp_path}:shortgpt@0.3": "is no cell of a run's folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            export_cell(source, tmp_path / "never")
    (file,) = (out / "cache" / "training" / "students").glob("*llm-streamline-ffn*")
    file.unlink()
    with pytest.raises(ConfigError, match="trained network .* is not there"):
        export_cell(f"{out}:llm-streamline-ffn@0.3", tmp_path / "never", device="cpu")
    settings["calibration"]["n_samples"] += 1
    del settings["checksum"]
    (out / "run.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"another model today \(calibration.n_samples was 4"):
        export_cell(f"{out}:shortgpt@0.3,recovery=none", tmp_path / "never", device="cpu")
    assert not (tmp_path / "never").exists()


def test_best_needs_a_perplexity(config, tmp_path):
    with pytest.raises(ConfigError, match="goes by held-out perplexity"):
        config(tmp_path, save="best", perplexity={"n_tokens": 0})


def test_a_cell_and_a_checkpoint_are_exported_to_another_format(done, tmp_path, capsys):
    def command(*arguments: Any) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, arguments)])
        return int(ended.value.code or 0)

    cell = f"{done}:shortgpt@0.3,recovery=none"
    killed = tmp_path / f".recipe.{'0' * 32}.tmp"
    (killed / "cell").mkdir(parents=True)
    (killed / CLAIM).touch()
    assert command(cell, tmp_path / "recipe", "--to", "mergekit", "--no-verify") == 0
    (record,) = [r for r in recorded(done) if (r.method, r.recovery) == ("shortgpt", "none")]
    ranges = yaml.safe_load((tmp_path / "recipe" / "mergekit.yaml").read_text())["slices"]
    kept = [i for part in ranges for i in range(*part["sources"][0]["layer_range"])]
    assert kept == record.plan.kept_layers
    assert record.extra("serves_in")[:2] == ["transformers", "vLLM"]
    assert command(cell, tmp_path / "short", "--no-verify", "--device", "cpu") == 0
    assert command(tmp_path / "short", tmp_path / "again", "--to", "mergekit") == 0
    assert command(f"{done}:llm-pruner@0.3", tmp_path / "x", "--to", "mergekit") == 2
    assert command(tmp_path / "short", tmp_path / "x") == 2
    assert command(tmp_path / "short", tmp_path / "x", "--to", "ggml") == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "mergekit cannot hold this model: a passthrough takes layers" in errors
    assert "is a checkpoint already" in errors
    assert "ggml" in errors and "gguf" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "recipe", "short"]


def test_an_export_runs_code_that_the_folder_names_by_a_flag_alone(
    done, tmp_path, monkeypatch, untrained
):
    """Methods of other cells are of no matter, wherever the settings name them."""
    mark, run_folder = tmp_path / "was-run", shutil.copytree(done, tmp_path / "run")
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (tmp_path / "named_by_a_folder.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    spec = "named_by_a_folder:X"
    file = run_folder / "run.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    (model,) = settings["models"]
    settings |= {"methods": [spec, "shortgpt"], "per_model": {model: {"methods": [spec]}}}
    settings.pop("checksum", None)
    file.write_text(json.dumps(settings), encoding="utf-8")
    plain = "shortgpt@0.3,recovery=none"
    record = next(r for r in recorded(done) if (r.method, r.recovery) == ("shortgpt", "none"))
    upsert(run_folder, record.model_copy(update={"method": spec}))

    export_cell(f"{run_folder}:{plain}", tmp_path / "short", verify=False, device="cpu")
    assert not mark.exists()
    named = f"{run_folder}:method={spec}"
    with pytest.raises(ConfigError, match=f"that the run.s folder names: {spec}. Give --trust"):
        export_cell(named, tmp_path / "code", device="cpu")
    assert not mark.exists()
    with pytest.raises(ConfigError, match="has no 'X'|not a class|cannot be imported"):
        export_cell(named, tmp_path / "code", device="cpu", trust_remote_code=True)
    assert mark.exists()
