"""Plug-ins and suites that bring code: who may run it, and what it cannot take down or change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Shown

_HEAD = """
import sys
from dataclasses import dataclass
import torch
from streamline.method import DepthMethod, Method
from streamline.plan import Plan

class Depth(DepthMethod):
    name = "mine"
    def select(self, calibration, n_remove):
        return Plan.drop(calibration.n_layers, range(n_remove))

"""
_LOOSE = "@dataclass(frozen=True, kw_only=True)\nclass X(Depth):\n    "
_BAD = {
    "raises_in_size": "def size(self, decoder, sparsity): raise RuntimeError('size')",
    "raises_in_unsupported": "def unsupported(self, decoder): raise KeyError('unsupported')",
    "raises_when_made": "def __post_init__(self): raise ZeroDivisionError('made')",
    "raises_in_select": "def select(self, calibration, n_remove): raise MemoryError()",
    "exits": "def select(self, calibration, n_remove): sys.exit(3)",
    "exits_silently": "def select(self, calibration, n_remove): sys.exit()",
    "gives_nothing": "def select(self, calibration, n_remove): return None",
    "gives_text": "def prune(self, decoder, calibration, sparsity, batches, seed): return 'x'",
    "zeroes_a_layer": (
        "def unsupported(self, decoder):\n"
        "        with torch.no_grad():\n"
        "            for p in decoder.layers[2].parameters(): p.zero_()"
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """``plugin(name, body)``: a module of its own with the class ``X``, and its spec."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, body: str) -> str:
        (tmp_path / f"plugin_{name}.py").write_text(_HEAD + _LOOSE + body + "\n", encoding="utf-8")
        return f"plugin_{name}:X"

    return write


def _figures(tmp_path: Path) -> dict[str, Any]:
    records = json.loads((tmp_path / "out" / "results.json").read_text())["records"]
    return {r["method"]: (r["status"], r["tasks"], r["summary"]) for r in records}


@pytest.fixture(scope="session")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What dense and shortgpt have where nobody misbehaves."""
    import os

    from streamline.cli.main import main

    folder, before = tmp_path_factory.mktemp("alone"), Path.cwd()
    os.chdir(inputs)
    try:
        with pytest.raises(SystemExit, match="0"):
            main(["--suite", "s.yaml", "--out", str(folder / "out")])
    finally:
        os.chdir(before)
    return _figures(folder)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("exits", "zeroes_a_layer") else [pytest.mark.slow])
        for name in _BAD
    ],
)
def test_a_bad_plugin_fails_alone(
    name: str,
    plugin: Callable[[str, str], str],
    bench: Callable[..., Shown],
    alone: dict[str, Any],
    tmp_path: Path,
) -> None:
    spec = plugin(name, _BAD[name])
    bench(f"--suite s.yaml --out OUT --methods dense,{spec},shortgpt").refuses(spec, code=1)
    figures = _figures(tmp_path)
    assert figures.pop(spec)[0] == "failed"
    assert figures == alone


@pytest.mark.parametrize("name", _BAD)
def test_validate_finds_it(
    name: str, plugin: Callable[[str, str], str], bench: Callable[..., Shown]
) -> None:
    shown = bench(f"validate {plugin(name, _BAD[name])} --families llama")
    assert (shown.code, "Traceback" in shown.err) == (1, False)
    assert "failed" in shown.out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('at import')\n", "cannot be imported"),
        ("import sys\nsys.exit(5)\n", "cannot be imported"),
        ("def broken(:\n", "cannot be imported"),
        ("\xe9", "cannot be imported"),
        ("X = 5\n", "not a class derived from streamline.method.Method"),
        ("from streamline.method import Method\nclass X(Method): name = 'x'\n", "abstract"),
    ],
)
def test_a_module_that_is_no_plugin_is_refused(
    source: str,
    message: str,
    bench: Callable[..., Shown],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"no_plugin_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_bytes(source.encode("latin-1"))
    monkeypatch.syspath_prepend(tmp_path)
    bench(f"--suite s.yaml --out OUT --methods dense,{name}:X").refuses(message)
    bench(f"validate {name}:X").refuses(message)


_MARK = "from pathlib import Path\nPath({mark!r}).touch()\n"


def test_code_that_a_suite_names_runs_by_a_flag_alone(
    bench: Callable[..., Shown],
    suite: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "was-run"
    body = _LOOSE.removesuffix("    ") + "    pass\n"
    source = _MARK.format(mark=str(mark)) + _HEAD + body
    (tmp_path / "named_by_a_suite.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = suite(methods=["dense", "named_by_a_suite:X"])
    for line in ("--suite {}", "--suite {} --dry-run", "--suite {} --print-config"):
        bench(line.format(path) + " --out OUT").refuses("names code to run: named_by_a_suite:X")
        assert not mark.exists()
    assert bench(f"--suite {path} --trust-remote-code --print-config").code == 0
    assert mark.exists()


def test_a_report_runs_no_code_of_the_run_it_reads(
    bench: Callable[..., Shown],
    suite: Callable[..., str],
    run_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "was-run"
    (tmp_path / "named_by_a_run.py").write_text(_MARK.format(mark=str(mark)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = suite(methods=["dense", "named_by_a_run:X"])
    (run_copy / "run.json").write_text(json.dumps({"suite": path}), encoding="utf-8")
    (run_copy / "commands.json").unlink(missing_ok=True)
    assert bench(f"report {run_copy}").code == 0
    assert not mark.exists()


@pytest.mark.slow
def test_a_tilde_is_the_home(
    bench: Callable[..., Shown],
    suite: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bench(f"--suite {suite(methods='dense', out='~/run')}").code == 0
    assert bench(f"--suite {suite(methods='dense')} --out=~/other").code == 0
    assert bench("evaluate model --tasks heldout@16 --limit 1 --out=~/e.json").code in (0, 2)
    assert {"run", "other"} <= {path.name for path in (tmp_path / "home").iterdir()}
    assert not Path("~").exists()
