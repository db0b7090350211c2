from __future__ import annotations

import json
import os
import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from streamline import registry
from streamline.cli.main import main
from streamline.errors import AssetError
from streamline.registry import METHODS, available
from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.planning import estimate as sizing


def _exit(arguments: str) -> int:
    with pytest.raises(SystemExit) as info:
        main(arguments.split())
    return int(info.value.code or 0)


def _record(**changes: Any) -> Record:
    values = {"model": "m", "method": "shortgpt", "sparsity": 0.25, "status": "ok", **changes}
    return Record.build(values)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that reached the pipeline, which answers with one good record."""
    configs: list[RunConfig] = []

    def run(config: RunConfig, progress: object = None, **_: object) -> list[Record]:
        configs.append(config)
        return [_record()]

    monkeypatch.setattr(pipeline, "run", run)
    return configs


def test_without_a_verb_run_is_meant(ran: list[RunConfig]) -> None:
    flags = "--models a --methods dense --sparsities 0.1,0.2 --limit 5 --seed 0,3 --objective lm"
    assert _exit(flags) == 0
    assert _exit(f"run {flags}") == 0
    assert ran[0] == ran[1]
    assert (ran[0].sparsities, ran[0].limit, ran[0].seeds) == ((0.1, 0.2), 5, (0, 3))
    assert ran[0].training.objective == "lm"


def test_every_flag_reaches_the_run(ran: list[RunConfig], tmp_path: Path) -> None:
    flags = (
        f"--models a --methods dense --tasks piqa --recovery none,lora --out {tmp_path} "
        f"--device cpu --dtype bfloat16 --executor ray --data packaged --data-dir {tmp_path} "
        "--batch-tokens 99 --trust-remote-code --calibration wikitext2 --device-map auto --compile "
        "--efficiency full --efficiency-seconds 90 --one-by-one"
    )
    assert _exit(flags) == 0
    expected = {
        "tasks": ("piqa",),
        "recovery": ("none", "lora"),
        "out": tmp_path,
        "device": "cpu",
        "device_map": "auto",
        "compile": True,
        "efficiency": "full",
        "efficiency_seconds": 90,
        "one_by_one": True,
        "dtype": "bfloat16",
        "executor": "ray",
        "data": "packaged",
        "data_dir": tmp_path,
        "batch_tokens": 99,
        "trust_remote_code": True,
    }
    assert {name: getattr(ran[0], name) for name in expected} == expected
    assert ran[0].calibration.texts == "wikitext2"


def test_a_failed_cell_is_named_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = [
        _record(status="failed", reason="RuntimeError: no memory", sparsity=sparsity)
        for sparsity in (0.25, 0.5)
    ]
    monkeypatch.setattr(pipeline, "run", lambda config, **_: [_record(), *failed])
    assert _exit("--models a --methods dense") == 1
    error = capsys.readouterr().err
    assert error == "failed: m shortgpt@0.25, m shortgpt@0.5: RuntimeError: no memory\n"


def test_an_error_of_ours_is_one_message_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, **_: object) -> list[Record]:
        raise AssetError("the model [a] is gated; ask for it")

    monkeypatch.setattr(pipeline, "run", fail)
    assert _exit("--models a --methods dense") == 2
    error = capsys.readouterr().err
    assert error.strip() == "error: the model [a] is gated; ask for it"
    with pytest.raises(AssetError):
        main(["--models", "a", "--methods", "dense", "--debug"])


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: RunConfig, **_: object) -> list[Record]:
        raise RuntimeError("a fault")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["--models", "a", "--methods", "dense"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evalute x", "unknown verb 'evalute'. Did you mean: evaluate"),
        ("--models a --methods shortgtp", "unknown method 'shortgtp'. Did you mean: shortgpt"),
        ("--models a --methods dense --sparsities 1.5", "less than 1 (given: '1.5')"),
        ("--models a --methods dense --suite no-such", "unknown suite 'no-such'"),
        ("--models a", "nothing to run: --methods not given"),
        ("prune a --method dense --sparsity -1 --out x", "greater than or equal to 0"),
        ("evaluate a --tasks piqa --limit 0 --out x", "limit: input should be greater"),
        ("validate dense --families llamma", "unknown family 'llamma'. Did you mean: llama"),
        ("validate desne", "unknown method 'desne'. Did you mean: dense"),
        ("new-method Bad_Name", "'Bad_Name' cannot name a method"),
        ("new-method dense", "a method 'dense' is installed already"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_what_is_accepted(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--no-such-flag", "ls colours", "prune a", "run --limit x"])
def test_usage_errors_exit_with_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit(arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    ["run", "ls", "prune", "evaluate", "stability", "compare", "report", "validate", "new-method"],
)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit(f"{verb} --help") == 0
    assert f"streamline-bench {'' if verb == 'run' else verb}" in capsys.readouterr().out


def test_ls_methods_tells_paper_families_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit("ls methods --json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(available(METHODS))
    assert rows["llm-streamline-layer"]["trains"] is True
    assert rows["dense"]["trains"] is False
    assert rows["shortgpt"]["paper"] == "arXiv:2403.03853"
    assert all(row["families"] and row["summary"] and row["source"] for row in rows.values())


def test_a_broken_plugin_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {
        "broken": EntryPoint("broken", "no_such_package:X", METHODS),
        "dense": available(METHODS)["dense"],
    }
    monkeypatch.setattr(registry, "available", lambda _: points)
    assert _exit("ls methods --json") == 0
    shown = capsys.readouterr()
    assert [row["name"] for row in json.loads(shown.out)] == ["dense"]
    assert "warning: 'broken' in streamline.methods points to 'no_such_package:X'" in shown.err


@pytest.mark.parametrize(
    ("kind", "name"),
    [("models", "llama2-7b"), ("tasks", "commonsense"), ("suites", "embedded")],
)
def test_ls_lists_what_is_there(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit(f"ls {kind} --json") == 0
    assert name in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert _exit(f"ls {kind}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("name")
    assert any(line.split()[0] == name for line in lines)


@pytest.mark.usefixtures("unrehearsed")
def test_a_dry_run_counts_the_papers_shares_from_the_config_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = "llm-streamline-none,llm-streamline-ffn,llm-streamline-layer"
    flags = f"--models llama2-7b --methods {methods} --sparsities 0.25 --dry-run"
    assert _exit(f"{flags} --device cuda --out no-such-folder-is-made") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:7]]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("dense", "0", "0.00"),
        ("llm-streamline-none", "8", "24.03"),
        ("llm-streamline-ffn", "9", "25.04"),
        ("llm-streamline-layer", "9", "24.03"),
    ]
    assert not Path("no-such-folder-is-made").exists()


def test_a_dry_run_warns_of_what_cannot_fit_after_showing_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: 2**28)
    flags = "--models llama2-7b --methods dense --dry-run --dtype bfloat16"
    assert _exit(flags) == 0
    shown = capsys.readouterr()
    assert "warning: this machine cannot run it: the run needs at least 12.6 GiB" in shown.err
    assert "6,738,415,616" in shown.out


@pytest.mark.usefixtures("unrehearsed")
def test_a_large_model_with_a_trials_training_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--models llama2-7b --methods llm-streamline-ffn --dry-run --dtype bfloat16"
    assert _exit(flags) == 0
    warning = "llama2-7b: replacements see 200,000 training tokens, enough for a trial"
    assert warning in capsys.readouterr().err
    assert _exit(f"{flags} --train-tokens 30000000") == 0
    shown = capsys.readouterr()
    assert "enough for a trial" not in shown.err and "training 150,000,000" in shown.out
    assert _exit("--models llama2-7b --methods shortgpt --dry-run") == 0
    assert "enough for a trial" not in capsys.readouterr().err


def test_prune_and_evaluate_hand_over_checked_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        pipeline, "prune_to_checkpoint", lambda model, **rest: calls.append((model, rest))
    )

    def evaluate(model: str, **rest: Any) -> Record:
        calls.append((model, rest))
        return _record(
            tasks={"piqa": {"metric": "acc", "value": 2 / 3, "n": 4}},
            summary={"perplexity": {"heldout": 12.34567}},
        )

    monkeypatch.setattr(pipeline, "evaluate_model", evaluate)
    assert _exit(f"prune a --method shortgpt --sparsity 0.3 --seed 4 --out {tmp_path}/c") == 0
    assert _exit(f"evaluate {tmp_path}/c --tasks piqa --limit 4 --out {tmp_path}/r.json") == 0
    (model, pruned), (folder, evaluated) = calls
    assert (model, pruned["method"], pruned["sparsity"]) == ("a", "shortgpt", 0.3)
    assert (pruned["config"].seeds, pruned["out"]) == ((4,), tmp_path / "c")
    assert (folder, evaluated["out"]) == (f"{tmp_path}/c", tmp_path / "r.json")
    assert (evaluated["config"].tasks, evaluated["config"].limit) == (("piqa",), 4)
    assert evaluated["config"].perplexity.n_tokens == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["piqa", "acc", "0.6667", "-", "4"] in rows
    assert ["heldout", "perplexity", "12.35", "-", "-"] in rows


def test_validate_shows_every_check_and_fails_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit("validate dense --families llama --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in rows} == {"passed"}
    (tmp_path / "a_broken_method.py").write_text(
        "from streamline.baselines.dense import Dense\nclass Broken(Dense):\n    paper = ''\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert _exit("validate a_broken_method:Broken --families llama") == 1
    out = capsys.readouterr().out
    assert "the class attribute paper must be a str and not empty, got ''" in out
    assert "1 failed" in out


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["streamline", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("streamline", run_name="__main__")
    assert capsys.readouterr().out.startswith("streamline-bench ")


def test_only_the_first_of_several_processes_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert _exit("--version") == 0
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_bars_of_the_libraries_below_stay_off_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.delenv("TQDM_DISABLE")
    assert _exit("--version") == 0
    assert os.environ["TQDM_DISABLE"] == "1"
