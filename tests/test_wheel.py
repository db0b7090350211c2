from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked and new files, as a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], _ROOT)
    for name in listed.splitlines():
        source = _ROOT / name
        if source.is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    _run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        folder / "source",
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a clean environment that holds the wheel.

    Dependencies are those of the running environment, seen through a path file that ends before
    the editable install: path files are not followed from there.
    """
    folder = tmp_path_factory.mktemp("clean")
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    python = folder / "bin" / "python"
    _run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        + ["--no-deps", "--no-index", str(wheel)],
        folder,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "streamline-bench"


def test_the_wheel_holds_every_package_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {
        "streamline": "streamline",
        "baselines": "streamline/baselines",
        "benchmarks": "streamline/benchmarks",
        "reports/published": "streamline/published",
        "tasks": "streamline/tasks",
    }
    kinds = {".py", ".yaml", ".csv", ".jinja", ".typed"}
    for folder, package in folders.items():
        for path in (_ROOT / folder).rglob("*"):
            if path.suffix in kinds or path.name == "py.typed":
                inside = f"{package}/{path.relative_to(_ROOT / folder).as_posix()}"
                assert inside in names, f"{path} is not in the wheel"
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"streamline", "streamline_bench-0.1.0.dist-info"}


def test_the_installed_command_lists_everything(installed: Path, tmp_path: Path) -> None:
    place = _run(
        [str(installed.with_name("python")), "-c", "import streamline; print(streamline.__file__)"],
        tmp_path,
    )
    assert Path(place.strip()).is_relative_to(installed.parents[1])
    found = {
        kind: [
            row["name"]
            for row in json.loads(_run([str(installed), "ls", kind, "--json"], tmp_path))
        ]
        for kind in ("methods", "tasks", "suites", "models")
    }
    assert {"dense", "shortgpt", "llm-streamline-layer"} <= set(found["methods"])
    assert "commonsense" in found["tasks"]
    assert "embedded" in found["suites"]
    assert "llama2-7b" in found["models"]


def _run(command: list[str], cwd: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
