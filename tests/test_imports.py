from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_CORE = sorted((_ROOT / "streamline").rglob("*.py"))
_HEAVY = (
    "torch",
    "transformers",
    "lm_eval",
    "pandas",
    "datasets",
    "matplotlib",
    "pyarrow",
    "scipy",
)


def _imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _importers(package: str, files: list[Path]) -> set[str]:
    return {
        str(path.relative_to(_ROOT))
        for path in files
        if any(name == package or name.startswith(f"{package}.") for name in _imports(path))
    }


def test_the_core_never_imports_a_baseline() -> None:
    assert len(_CORE) > 10
    assert _importers("streamline.baselines", _CORE) == set()


def test_each_outside_seam_is_one_file() -> None:
    everything = [*_CORE, *sorted((_ROOT / "baselines").rglob("*.py"))]
    assert _importers("lm_eval", everything) <= {"streamline/evaluation/harness.py"}
    assert _importers("peft", everything) <= {"streamline/training/lora.py"}


def test_the_rule_would_find_an_import(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from streamline import baselines\n", encoding="utf-8")
    assert "streamline.baselines" in set(_imports(path))


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
