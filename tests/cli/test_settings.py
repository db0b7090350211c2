"""Settings that a person can find: flags from the fields, the resolved run, a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from streamline.cli.main import main
from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig, build_config
from streamline.run.settings import settings
from streamline.run.suites import COMMAND_LINE


def _exit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    return int(info.value.code or 0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that reached the pipeline."""
    configs: list[RunConfig] = []

    def run(config: RunConfig, progress: object = None, **_: object) -> list[Record]:
        configs.append(config)
        return []

    monkeypatch.setattr(pipeline, "run", run)
    return configs


def _words(text: str) -> str:
    """The words of a help page without its frames and line breaks."""
    return " ".join(text.replace("│", " ").replace("`", "").split())


def test_every_flag_of_a_run_is_there_with_its_fields_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _exit("run", "--help") == 0
    shown = _words(capsys.readouterr().out)
    flags = [found for found in settings(RunConfig) if found.flag]
    assert len(flags) > 20
    for found in flags:
        assert f"{found.flag}" in shown
        assert _words(found.help) in shown


@pytest.mark.parametrize("verb", ["run", "prune", "evaluate", "ls", "rm", "cache", "compare"])
def test_help_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert _exit(verb, "--help") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    "flags",
    [
        ("--models", "opt-1.3b", "--methods", "all", "--sparsities", "0.1,0.25"),
        ("--suite", "embedded", "--limit", "7"),
        ("--suite", "paper-table3", "--quick", "--perplexity", "none"),
    ],
)
def test_the_resolved_run_is_a_suite_again(
    flags: tuple[str, ...],
    ran: list[RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _exit(*flags, "--print-config") == 0
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert ran == []  # nothing is run
    assert _exit(*flags) == 0
    again = build_config({}, suite=str(file))
    assert again.model_copy(update={"suite": ran[0].suite}) == ran[0]
    if ran[0].suite:
        from streamline.run.suites import load_suite

        assert load_suite(str(file)).report == load_suite(ran[0].suite).report


def test_the_resolved_run_shows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit("--models", "opt-1.3b", "--methods", "dense", "--print-config") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown) == set(RunConfig.model_fields) - set(COMMAND_LINE)
    assert shown["training"]["n_tokens"] == "auto"


def test_costs_that_a_limit_does_not_touch_have_flags(ran: list[RunConfig]) -> None:
    least = ("--models", "a", "--methods", "dense")
    for text in ("none", "0", "512"):
        assert _exit(*least, "--calibration-samples", "3", "--perplexity", text) == 0
    assert [config.perplexity.n_tokens for config in ran] == [0, 0, 512]
    assert {config.calibration.n_samples for config in ran} == {3}


def test_a_trial_sets_every_cost_and_flags_win_over_it(ran: list[RunConfig]) -> None:
    suite = ("--suite", "embedded")
    assert _exit(*suite) == 0
    assert _exit(*suite, "--quick") == 0
    assert _exit(*suite, "--quick", "--limit", "33", "--train-tokens", "999") == 0
    full, trial, own = ran

    def costs(config: RunConfig) -> list[Any]:
        training = config.training.seen_tokens
        return [
            config.limit,
            config.calibration.n_samples,
            training,
            config.perplexity.n_tokens,
            config.efficiency_seconds,
        ]

    assert all(less < more for less, more in zip(costs(trial), costs(full), strict=True))
    assert costs(own) == [33, *costs(trial)[1:2], 999, *costs(trial)[3:]]
    assert (full.quick, trial.quick) == (False, True)
    assert trial.training.learning_rate == full.training.learning_rate
    assert trial.methods == full.methods


def test_a_trial_wins_over_what_a_suite_sets_for_one_model(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("models: a\nmethods: dense\nper_model: {a: {training: {n_tokens: 5000000}}}\n")
    trial = build_config({"quick": True}, suite=str(file)).for_model("a")
    assert trial.training.n_tokens < 10_000


def test_an_old_word_is_refused_with_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("models: a\nmethods: dense\nhealing: {preset: default}\n")
    assert _exit("--suite", str(file)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "healing is now lora" in error


def test_own_tasks_are_found_by_their_folder(
    ran: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("task: my_sums\n")
    flags = ("--models", "a", "--methods", "dense", "--tasks", "my_sums")
    assert _exit(*flags) == 2
    assert "unknown task or group 'my_sums'" in capsys.readouterr().err
    assert _exit(*flags, "--include-path", str(tmp_path)) == 0
    assert ran[0].include_path == tmp_path
    assert _exit(*flags, "--include-path", str(tmp_path / "none")) == 2
    assert "include_path: path does not point to a directory" in capsys.readouterr().err
