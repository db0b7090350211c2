"""What pyproject.toml says of the package is what is on disk."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamline import registry

ROOT = Path(__file__).parents[1]
NEVER_IMPORTED = {"pip"}
"""Dependencies that others use: a process of its own."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def folders(project: dict[str, Any]) -> dict[str, Path]:
    """The folder of each listed package: of its own, or within its parent's."""
    tool = project["tool"]["setuptools"]
    found: dict[str, Path] = {}
    for name in sorted(tool["packages"]):
        parent, _, last = name.rpartition(".")
        own = tool["package-dir"].get(name)
        found[name] = ROOT / own if own else found[parent] / last
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_packages_listed_are_those_on_disk(
    project: dict[str, Any], folders: dict[str, Path]
) -> None:
    on_disk = set()
    for name, own in project["tool"]["setuptools"]["package-dir"].items():
        for file in (ROOT / own).rglob("*.py"):
            on_disk.add(".".join([name, *file.parent.relative_to(ROOT / own).parts]))
    on_disk |= {"streamline.published"}  # data alone
    on_disk -= {name for name in on_disk if name.startswith("streamline.tasks.")}  # data of a task
    assert sorted(folders) == sorted(on_disk)


def test_every_dependency_is_imported_and_every_import_is_declared(
    project: dict[str, Any], folders: dict[str, Path]
) -> None:
    wanted = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    optional = [*extras["ray"], *extras["slurm"]]
    declared = {normal(re.split(r"[<>=!~\[ ]", line)[0]) for line in [*wanted, *optional]}
    tops = {
        module.split(".")[0]
        for folder in folders.values()
        for file in folder.glob("*.py")
        for module in imported(file)
    }
    homes = packages_distributions()
    # A library that is not installed, as ray, is its own distribution; the standard one has none.
    found = {normal(home) for top in tops for home in homes.get(top, [])} | (tops & declared)
    others = {"streamline-bench", "slicegpt"}  # ourselves, and a peer in an environment of its own
    assert found - others == declared - NEVER_IMPORTED


def imported(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def test_plugins_are_looked_for_in_these_groups(project: dict[str, Any]) -> None:
    groups = {"streamline.methods", "streamline.tasks", "streamline.suites"}
    assert {registry.METHODS, registry.TASKS, registry.SUITES} == groups
    assert set(project["project"]["entry-points"]) == groups


def test_one_version_and_one_range_of_pythons(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["project"]["version"]
    lowest = project["project"]["requires-python"].removeprefix(">=")
    classifiers = project["project"]["classifiers"]
    listed = [c.rpartition(" ")[2] for c in classifiers if "Python :: 3." in c]
    assert listed[0] == lowest == project["tool"]["mypy"]["python_version"]
    assert project["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == listed


LINKED = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "out"} & set(path.parts))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:streamline|baselines|benchmarks|tests)/[\w/]+\.\w+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
