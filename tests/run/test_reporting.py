from __future__ import annotations

import html

import pytest

from streamline.errors import ConfigError, UnknownNameError
from streamline.results.record_file import load, upsert
from streamline.run.commands import commanded, note_command
from streamline.run.reporting import report_run, rerun_command

SUITE = "title: T\nreport: {layout: {published: v1_table3_opt}}\n"


def small_run(folder):
    task = {"piqa": {"metric": "acc", "value": 0.5}}
    for method, sparsity in (("dense", 0), ("shortgpt", 0.25)):
        cell = {"model": "m", "method": method, "sparsity": sparsity, "status": "ok"}
        upsert(folder, cell | {"tasks": task})


def test_the_layout_of_a_suite_is_followed(tmp_path):
    small_run(tmp_path)
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE)
    report_run(tmp_path, str(suite))
    text = (tmp_path / "report.md").read_text()
    assert "## Published and measured" in text
    assert "| shortgpt@0.25 | measured" in " ".join(text.split())


def test_a_recorded_suite_that_is_not_at_hand_is_noted(tmp_path):
    small_run(tmp_path)
    (tmp_path / "run.json").write_text('{"suite": "gone"}')
    report_run(tmp_path)
    assert "give --suite FILE" in (tmp_path / "report.md").read_text()
    with pytest.raises(UnknownNameError, match="gone"):
        report_run(tmp_path, "gone")
    (tmp_path / "mine.yaml").write_text("title: T\nreport: {layout: 3}\n")
    with pytest.raises(ConfigError, match="layout is no mapping"):
        report_run(tmp_path, str(tmp_path / "mine.yaml"))


def test_naming_the_command_runs_no_code_that_records_name(run_folder, tmp_path, monkeypatch):
    mark = tmp_path / "was-run"
    (tmp_path / "named_by_a_record.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    records = [
        record.model_copy(update={"method": "named_by_a_record:X"}) for record in load(run_folder)
    ]
    command = rerun_command(records, {"training": {"n_tokens": 8192}})
    assert not mark.exists()
    assert "--methods named_by_a_record:X" in command and "--train-tokens 8192" in command


def test_the_command_that_repeats_a_run(run_folder):
    records = load(run_folder)
    bare = rerun_command(records, {"limit": 40})
    assert bare.startswith("streamline-bench --models smollm2-135m-instruct --methods dense,random")
    assert bare.endswith("--sparsities 0.1,0.25 --limit 40")
    given = {"suite": "paper-table1", "models": ["m"], "limit": 50, "data_dir": "my data"}
    assert rerun_command(records, given | {"methods": None}) == (
        "streamline-bench --suite paper-table1 --models m --limit 50 --data-dir 'my data'"
    )
    trained = {
        "training": {"n_tokens": 8192, "epochs": 3, "batch_tokens": 512},
        "calibration": {"texts": "packaged", "n_samples": 16},
        "prompting": {"apply_chat_template": True},
        "sources": {"settings": {"m": {"training.batch_tokens": {"value": 512, "why": "a CPU"}}}},
    }
    assert rerun_command(records, trained).endswith(
        "--sparsities 0.1,0.25 --apply-chat-template --calibration packaged "
        "--calibration-samples 16 --train-tokens 8192  # and in run.json: training.epochs"
    )
    assert rerun_command(records, {"suite": "gone"}) == "streamline-bench --suite gone"
    assert rerun_command(records, {"suite": "embedded"}) == "streamline-bench --suite embedded"


def test_the_kept_commands_stand_in_the_report(tmp_path):
    small_run(tmp_path)
    for arguments in (["--suite", "my suite.yaml"], ["--methods", "shortgpt"]):
        with commanded(arguments):
            note_command(tmp_path)
    page = report_run(tmp_path)
    lines = "streamline-bench --suite 'my suite.yaml'\nstreamline-bench --methods shortgpt\n"
    assert f"{lines}streamline-bench report DIR\n```" in (tmp_path / "report.md").read_text()
    assert html.escape(lines, quote=False).replace("'", "&#39;") in page.read_text()


def test_what_a_record_lacks_is_taken_from_the_table_of_tasks(tmp_path):
    tasks = {
        "piqa": {"metric": "acc", "value": 0.5, "n": 3},
        "streamline_c3": {"metric": "acc", "value": 0.5, "n": 3, "shots": 7},
        "mmlu_anatomy": {"metric": "acc", "value": 0.5, "n": 3},
        "mmlu_virology": {"metric": "acc", "value": 0.5, "n": 4},
        "elsewhere": {"metric": "acc", "value": 0.5, "n": 3},
    }
    cell = {"model": "m", "method": "dense", "sparsity": 0, "status": "ok"}
    upsert(tmp_path, cell | {"tasks": tasks})
    (tmp_path / "run.json").write_text('{"data": "packaged"}')
    report_run(tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    facts = [line for line in lines if line.count("|") == 8 and "acc" in line]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in facts] == [
        ["piqa", "lm-eval", "acc", "3", "validation", "0", "not recorded"],
        ["streamline_c3", "opencompass-ppl", "acc", "3", "validation", "7", "not recorded"],
        ["mmlu", "lm-eval", "acc", "7 in 2 subjects", "test", "0", "not recorded"],
        ["elsewhere", "not recorded", "acc", "3", "not recorded", "not recorded", "not recorded"],
    ]
