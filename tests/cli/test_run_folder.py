"""The command on a folder: what is missing, what a change replaces, what is done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.cli.main import main
from streamline.results.record_file import load
from streamline.run import model_run
from streamline.testing.models import tiny_model, tiny_tokenizer

Command = Callable[..., int]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, a text, and questions of which one file is damaged."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("model", "other")):
        tiny_model("llama", n_layers=4, seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "text.txt").write_text("the quick brown fox jumps over a lazy dog.\n\n" * 400)
    rows = [{"goal": f"keep {i} dry", "sol1": "a box", "sol2": "no", "label": 0} for i in range(6)]
    for name in ("piqa/dev.jsonl", "data/piqa/dev.jsonl"):
        file = folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(map(json.dumps, rows)))
    (folder / "data" / "openbookqa").mkdir()
    (folder / "data" / "openbookqa" / "test.jsonl").write_text("{not json")
    return folder


@pytest.fixture
def command(world: Path, tmp_path: Path) -> Command:
    """``command(out, *flags)``: a small run into a folder of that name, and its exit code."""

    def carry_out(
        out: str, *switches: str, models: tuple[str, ...] = ("model",), **changes: str
    ) -> int:
        given = {
            "models": ",".join(str(world / name) for name in models),
            "methods": "shortgpt",
            "sparsities": "0.3",
            "tasks": "piqa",
            "data-dir": str(world / "data"),
            "calibration": str(world / "text.txt"),
            "calibration-samples": "2",
            "perplexity": "none",
            "device": "cpu",
            "efficiency": "off",
            "out": str(tmp_path / out),
            **changes,
        }
        arguments = [f"--{name}={value}" for name, value in given.items()]
        with pytest.raises(SystemExit) as info:
            main([*arguments, *switches])
        return int(info.value.code or 0)

    return carry_out


def _never(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be computed")

    for name in names:
        monkeypatch.setattr(model_run, name, never)


@pytest.mark.parametrize("models", [("model",), ("model", "other")])
@pytest.mark.parametrize(
    ("tasks", "name", "why"),
    [
        ("piqa,openbookqa", "openbookqa", "is not in the form its authors publish"),
        ("piqa,heldout@99999999", "heldout@99999999", "longer than the 512 positions"),
        ("piqa,wikitext2", "wikitext2", "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_set_that_cannot_be_had_ends_the_run_before_any_work(
    models, tasks, name, why, command, capsys, monkeypatch
):
    _never(monkeypatch, "load_dense", "prune")
    assert command("out", tasks=tasks, models=models) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{name}: " in error and why in error and "--skip-missing" in error
    assert "Traceback" not in error


def test_what_is_left_out_by_wish_is_missing_and_not_done(command, capsys, tmp_path):
    tasks, out = "piqa,openbookqa,heldout@99999999", tmp_path / "out"
    assert command("out", "--skip-missing", tasks=tasks) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "openbookqa is missing: " in shown and "heldout@99999999 is missing: " in shown
    records = load(out)
    assert [record.status for record in records] == ["ok", "ok"]
    for record in records:
        assert record.tasks["openbookqa"].value is None
        assert record.summary.perplexity == {"heldout@99999999": None}
        assert set(record.notes["missing"]) == {"openbookqa", "heldout@99999999"}
    report = (out / "report.md").read_text()
    assert "openbookqa is missing: " in report
    assert command("out", "--skip-missing", tasks=tasks) == 1, "it is still not done"
    capsys.readouterr()
    assert command("out", tasks=tasks) == 2, "and without the wish it is not passed over"
    assert [record.key for record in load(out)] == [record.key for record in records]


def test_nothing_but_what_is_missing_is_refused_in_any_case(command, capsys):
    assert command("out", "--skip-missing", tasks="heldout@99999999") == 2
    assert "none of the tasks has questions here" in " ".join(capsys.readouterr().err.split())


def test_what_a_changed_setting_replaces_is_said_first(command, capsys, tmp_path, world):
    assert command("out") == 0
    capsys.readouterr()
    assert command("out", limit="3") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "changed: limit was null, is 3: done again: dense, shortgpt 0.3" in said
    text = tmp_path / "other.txt"
    text.write_text((world / "text.txt").read_text().replace("fox", "cat"))
    assert command("out", limit="3", calibration=str(text)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the text of calibration" in said and "done again: shortgpt 0.3" in said
    assert command("out", limit="3", calibration=str(text)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "changed" not in said and "all 2 cells are done already" in said


@pytest.mark.parametrize(
    ("redo", "cells"),
    [("--redo", ["dense", "shortgpt"]), ("--redo=shortgpt@0.3", ["shortgpt"])],
)
def test_cells_are_done_again_by_wish(redo, cells, command, capsys, tmp_path, monkeypatch):
    assert command("out") == 0
    before = {record.method: record for record in load(tmp_path / "out")}
    asked: list[str] = []
    original = model_run.evaluate

    def watched(paths, *args, **options):
        asked.extend(path.name.split()[0] for path in paths.values())
        return original(paths, *args, **options)

    monkeypatch.setattr(model_run, "evaluate", watched)
    assert command("out", redo) == 0
    after = {record.method: record for record in load(tmp_path / "out")}
    assert sorted(asked) == cells
    assert {m: r.tasks for m, r in after.items()} == {m: r.tasks for m, r in before.items()}
    capsys.readouterr()
    assert command("out", "--redo=uidl") == 2
    assert "unknown cell" in capsys.readouterr().err and len(load(tmp_path / "out")) == 2


def test_a_killed_run_shows_what_there_is(command, capsys, tmp_path, monkeypatch):
    original = model_run.evaluate

    def dies(*args, **options):
        original(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_run, "evaluate", dies)
        assert command("out", models=("model", "other")) == 130
    records = load(tmp_path / "out")
    assert [(r.method, r.status) for r in records] == [("dense", "failed"), ("shortgpt", "failed")]
    assert records[0].reason.startswith("not finished: done so far: piqa answered.")
    assert records[1].reason.startswith("not finished: done so far: pruned, piqa answered.")
    with pytest.raises(SystemExit) as info:
        main(["report", str(tmp_path / "out")])
    assert not info.value.code
    assert "not finished: done so far: pruned" in (tmp_path / "out" / "report.md").read_text()
    assert command("out", models=("model", "other")) == 0
    assert {record.status for record in load(tmp_path / "out")} == {"ok"}


def test_a_failed_cell_keeps_its_traceback(command, capsys, tmp_path, monkeypatch):
    from streamline.baselines.shortgpt import ShortGPT

    def fails(*_: object) -> None:
        raise ZeroDivisionError("no scores")

    monkeypatch.setattr(ShortGPT, "select", fails)
    assert command("out") == 1
    assert "Traceback" not in capsys.readouterr().err
    failed = next(r for r in load(tmp_path / "out") if r.status == "failed")
    text = failed.notes["traceback"]
    assert text.startswith("Traceback") and "ZeroDivisionError: no scores" in text
    assert "in fails" in text
    assert command("out", "--debug") == 1
    assert "ZeroDivisionError: no scores" in capsys.readouterr().err


def test_a_resumed_cells_record_is_that_of_an_undisturbed_one(command, tmp_path, monkeypatch):
    """Its notes on data are its own, not what the process that wrote it happened to make."""
    assert command("whole", methods="shortgpt,last-layers") == 0
    whole = {record.method: record for record in load(tmp_path / "whole")}
    original = model_run.evaluate

    def dies(*args, **options):
        original(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_run, "evaluate", dies)
        assert command("out", methods="shortgpt,last-layers") == 130
    assert command("out", methods="shortgpt,last-layers") == 0
    for record in load(tmp_path / "out"):
        assert record.notes["data"] == whole[record.method].notes["data"]
        assert record.texts == whole[record.method].texts
    scoring = whole["dense"].notes["data"]["scoring"]
    assert scoring["batch_tokens"] == {"default": 2048}
    assert not whole["dense"].texts
    (text,) = whole["shortgpt"].texts
    assert (text["use"], text["part"], text["source"]) == ("calibration", "train", "files")
    assert text["tokens"] == 1024 and len(text["revision"]) == len(text["sha256"]) == 64
    assert 0 < text["largest"] <= 1 <= text["documents"] <= text["pool"]
