from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from streamline import registry
from streamline.cli.main import main
from streamline.registry import METHODS, available
from streamline.run.config import RunConfig, build_config
from streamline.run.settings import settings
from streamline.run.suites import COMMAND_LINE


def _lines(arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit, match="0"):
        main(arguments.split())
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", ["methods", "models", "tasks", "suites"])
def test_a_list_is_made_without_the_heavy_libraries(kind: str) -> None:
    program = (
        "import sys\n"
        "from streamline.cli.main import main\n"
        "try:\n"
        f"    main(['ls', '{kind}'])\n"
        "finally:\n"
        "    print(*{'torch', 'transformers', 'lm_eval', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("kind", ["methods", "tasks", "models"])
def test_a_list_fits_80_columns(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, _lines(f"ls {kind}", capsys))) <= 80


def test_every_method_has_one_line_that_says_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = dict(line.split(maxsplit=1) for line in _lines("ls methods", capsys)[2:])
    assert list(shown) == list(available(METHODS))
    assert shown["shortgpt"] == "Remove the layers of lowest Block Influence."
    assert all(line.endswith(".") for line in shown.values())
    rows = json.loads("\n".join(_lines("ls methods --json", capsys)))
    assert {row["name"]: row["summary"] for row in rows} == shown


def test_a_class_that_its_module_only_imports_is_described_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {
        "elsewhere": EntryPoint("elsewhere", "streamline.baselines.laco:LaCo", METHODS),
        "imported": EntryPoint("imported", "streamline.files:Path", METHODS),
    }
    monkeypatch.setattr(registry, "available", lambda _: points)
    with pytest.raises(SystemExit, match="0"):
        main(["ls", "methods"])
    shown = capsys.readouterr()
    assert "Merge neighbouring layers" in shown.out
    assert "warning: 'imported' is <class 'pathlib.Path'>, not a class derived from" in shown.err


def test_tasks_tell_what_needs_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads("\n".join(_lines("ls tasks --json", capsys)))
    needs = {row["name"]: row["needs_hub"] for row in rows if row["kind"] == "task"}
    assert [needs[name] for name in ("piqa", "heldout", "streamline_gsm8k")] == [False] * 3
    assert [needs[name] for name in ("wsc", "wikitext2", "streamline_xsum")] == [True] * 3
    line = next(line for line in _lines("ls tasks", capsys) if line.startswith("wsc "))
    assert line.split()[-1] == "yes"


def test_the_schema_of_suites_is_a_suite_with_every_field_at_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines("ls suites --schema", capsys)
    assert max(map(len, lines)) <= 88
    file = tmp_path / "all.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(written) == set(RunConfig.model_fields) - set(COMMAND_LINE)
    for name, block in written.items():
        default = RunConfig.model_fields[name].get_default()
        if isinstance(default, BaseModel):
            assert set(block) == set(type(default).model_fields)
    flags = {"models": "opt-1.3b", "methods": "dense", "out": "out/run"}
    assert build_config(flags, suite=str(file)).model_copy(update={"suite": None}) == build_config(
        flags
    )
    assert all(found.help for found in settings(RunConfig))


def test_the_schema_is_json_too_and_of_suites_alone(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads("\n".join(_lines("ls suites --schema --json", capsys)))
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    with pytest.raises(SystemExit, match="2"):
        main(["ls", "tasks", "--schema"])
    assert "--schema is that of suites, not of tasks" in capsys.readouterr().err
