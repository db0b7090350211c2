from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamline.cli.new_method import write_package
from streamline.errors import ConfigError


def test_the_scaffold_is_small_python_that_parses(tmp_path: Path) -> None:
    folder = write_package("my-method-2", tmp_path)
    assert folder == tmp_path / "my-method-2"
    sources = sorted(folder.rglob("*.py"))
    assert len(sources) == 3
    for path in sources:
        ast.parse(path.read_text(encoding="utf-8"))
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert 'my-method-2 = "my_method_2.method:MyMethod2"' in project


@pytest.mark.parametrize("name", ["", "Mine", "a_b", "-a", "a-", "a--b", "2a", "class", "a/b"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a method: use lower-case"):
        write_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine exists; move it away"):
        write_package("mine", tmp_path)


@pytest.mark.package
def test_the_scaffold_installs_as_a_plugin_and_keeps_the_contract(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("streamline-bench")
    subprocess.run([command, "new-method", "my-method"], cwd=tmp_path, check=True)
    site = tmp_path / "site"
    _run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--target", str(site), str(tmp_path / "my-method")],
        tmp_path,
    )
    surroundings = {"PYTHONPATH": str(site)}
    listed = _run([str(command), "ls", "methods"], tmp_path, **surroundings)
    assert "my-method  " in listed
    checked = _run([str(command), "validate", "my-method"], tmp_path, **surroundings)
    assert "0 failed, 0 refused" in checked
    tested = _run([sys.executable, "-m", "pytest", "-q", "my-method"], tmp_path, **surroundings)
    assert "2 passed" in tested


def _run(command: list[str], cwd: Path, **surroundings: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **surroundings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
