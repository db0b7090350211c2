"""Who may import whom, how large a file and a folder may be: read from the import graph itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_FOLDERS = {"streamline": "streamline", "streamline.baselines": "baselines"}
_HEAVY = (
    "torch",
    "transformers",
    "lm_eval",
    "pandas",
    "datasets",
    "vl_convert",
    "pyarrow",
    "scipy",
)
_MOST_LINES, _MOST_FILES = 350, 16

# A package or a file at the top, and what it may import beside itself: what stands on its line
# and whatever that may import in turn. `streamline` is the public face, `ground` the files below.
_GROUND = (
    "distributed",
    "environment",
    "errors",
    "files",
    "hashing",
    "kept",
    "plan",
    "progress",
    "reading",
    "sharing",
)
_MAY_IMPORT = {
    "ground": "",
    "modeling": "",
    "engine": "modeling ground",
    "sources": "modeling ground",
    "calibration": "sources engine",
    "training": "sources engine",
    "fields": "ground",
    "method": "calibration training fields",
    "streaming": "method",
    "method_source": "ground",
    "registry": "method method_source",
    "methods": "method streaming",
    "results": "ground",
    "report": "results",
    "checkpoints": "methods streaming registry report",
    "evaluation": "methods streaming registry results",
    "testing": "checkpoints evaluation",
    "api": "checkpoints evaluation report",
    "run": "api testing report",
    "cli": "run",
    "streamline": "api",
    "__main__": "cli",
    "baselines": "methods streaming registry",
}

# Where imports of our own may stand within functions, and why.
_LATE = {
    "cli": "--help, completion and the lists load no torch",
    "registry": "the lists load no torch",
    "sources.models": "the lists load no torch",
}


def _modules(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Name -> file of every module; a package is named like its folder."""
    found = {}
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def _imports(name: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports anywhere, and whether within a function.

    Those for type checking alone count too: a name in an annotation is a name the file knows.
    """
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    left: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while left:
        node, late = left.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            # Every import below the package has run the file that defines the version.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            yield from ((f"{base}.{name}", late) for name in names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            left += [(inner, True) for inner in node.body]
        elif not isinstance(node, ast.expr):
            left += [(inner, late) for inner in ast.iter_child_nodes(node)]


class _Graph:
    """Our own modules and the imports between them: (importer, imported, late)."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.files = _modules(folders)
        self.names = {name: set(_imports(name, path)) for name, path in self.files.items()}
        self.imports = [
            (name, found, late)
            for name, names in self.names.items()
            for found, late in sorted({(self._own(x), y) for x, y in names})
            if found and found != name
        ]

    def _own(self, name: str) -> str:
        """The module of ours that an imported name is or lies in, or nothing."""
        parent = name.rpartition(".")[0]
        return name if name in self.files else parent if parent in self.files else ""

    def arrows(self) -> set[str]:
        """Imports that the table does not allow."""
        return {
            f"arrow: {_short(name)} -> {_unit(found)}"
            for name, found, _ in self.imports
            if _unit(found) not in _allowed(_unit(name)) | {_unit(name)}
        }

    def circles(self) -> set[str]:
        """Modules that import each other, each circle's names sorted."""
        below: dict[str, set[str]] = {name: set() for name in self.files}
        for name, found, _ in self.imports:
            below[name].add(found)
        for _ in below:  # until nothing more is reached
            grown = {name: mine.union(*(below[x] for x in mine)) for name, mine in below.items()}
            if grown == below:
                break
            below = grown
        rings = {
            frozenset(other for other in mine if name in below[other])
            for name, mine in below.items()
            if name in mine
        }
        return {f"circle: {', '.join(sorted(map(_short, ring)))}" for ring in rings}

    def sizes(self) -> set[str]:
        """Files and folders that are too large."""
        files = self.files.items()
        long = {name for name, path in files if _lines(path) > _MOST_LINES}
        counts = Counter(path.parent for name, path in files if _unit(name) != "baselines")
        full = {folder.name for folder, count in counts.items() if count > _MOST_FILES}
        return {f"long: {_short(name)}" for name in long} | {f"full: {name}" for name in full}

    def strangers(self) -> set[str]:
        """Packages and files at the top that the table does not have."""
        return {f"unknown: {name}" for name in map(_unit, self.files) if name not in _MAY_IMPORT}


def _short(name: str) -> str:
    return name.removeprefix("streamline.")


def _unit(name: str) -> str:
    """The line of the table that a module belongs to."""
    top = (name.split(".") + ["streamline"])[1] if "." in name else name
    return "ground" if top in _GROUND else top


def _allowed(unit: str) -> set[str]:
    """Everything that a line of the table allows, directly and in turn."""
    direct = _MAY_IMPORT.get(unit, "").split()
    return set(direct).union(*(_allowed(other) for other in direct))


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def ours() -> _Graph:
    return _Graph({name: _ROOT / folder for name, folder in _FOLDERS.items()})


@pytest.mark.parametrize("rule", ["arrows", "circles", "sizes", "strangers"])
def test_the_house_stands_as_planned(ours: _Graph, rule: str) -> None:
    assert sorted(getattr(ours, rule)()) == []


def test_imports_within_functions_have_a_reason(ours: _Graph) -> None:
    late = {
        _short(name) if _short(name) in _LATE else _unit(name): f"{_short(name)} -> {_short(found)}"
        for name, found, inside in ours.imports
        if inside
    }
    assert [line for where, line in late.items() if where not in _LATE] == []
    assert set(_LATE) <= set(late), "no longer needed in _LATE"


def test_the_rules_would_find_a_fault(tmp_path: Path) -> None:
    files = {
        "errors.py": "import streamline.plan\n",
        "plan.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from streamline.errors import ConfigError\n",
        "engine/decoder.py": "def f():\n    from streamline.run import config\n",
        "engine/paths.py": "\n" * (_MOST_LINES + 1),
        "run/config.py": "from ..engine.paths import Path\nfrom .. import cli\n",
        "cli/main.py": "",
        "oddment.py": "",
        **{f"cli/verb_{number}.py": "" for number in range(_MOST_FILES)},
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for folder in (tmp_path, *(tmp_path / name for name in ("engine", "run", "cli"))):
        (folder / "__init__.py").touch()
    graph = _Graph({"streamline": tmp_path})
    assert graph.arrows() == {
        "arrow: engine.decoder -> run",
        "arrow: run.config -> cli",
    }
    assert graph.circles() == {"circle: errors, plan"}
    assert graph.sizes() == {"long: engine.paths", "full: cli"}
    assert graph.strangers() == {"unknown: oddment"}
    assert ("streamline.engine.decoder", "streamline.run.config", True) in graph.imports


def test_each_outside_seam_is_one_file(ours: _Graph) -> None:
    assert _importers(ours, "lm_eval") <= {"streamline.evaluation.harness"}
    assert _importers(ours, "peft") <= {"streamline.training.lora"}


@pytest.mark.parametrize("name", ["results", "report"])
def test_what_reads_records_needs_no_model(ours: _Graph, name: str) -> None:
    reached = {module for module in ours.files if _unit(module) == name}
    assert reached
    while further := {b for a, b, _ in ours.imports if a in reached} - reached:
        reached |= further
    assert reached & (_importers(ours, "torch") | _importers(ours, "transformers")) == set()


def _importers(graph: _Graph, library: str) -> set[str]:
    """Modules that import a library anywhere."""
    return {
        name
        for name, names in graph.names.items()
        if any(found.split(".")[0] == library for found, _ in names)
    }


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "run --help", "ls --help", "ls models", "ls tasks", "ls suites"],
)
def test_help_and_lists_import_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys\n"
        "from streamline.cli.main import main\n"
        f"try:\n    main({arguments.split()!r})\n"
        "finally:\n"
        f"    loaded = [name for name in {_HEAVY!r} if name in sys.modules]\n"
        "    print('heavy:', loaded, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, streamline; print([n for n in {_HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
