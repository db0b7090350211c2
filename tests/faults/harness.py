"""Runs of the real command in children of one process that has imported everything.

The process is Python's own fork server; a child costs a fork, so that a run of a tiny model takes
about a second.

Example::

    done = command("report", str(out), cache=cache)
    assert done.code == 0, done.err
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from faults.child import Watch, run

__all__ = ["Outcome", "Watch", "command", "differences", "events"]

_FORKS = multiprocessing.get_context("forkserver")
_TIMES = {"seconds", "calibrate_s", "train_s", "eval_s", "peak_memory_bytes"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a negative code is the signal that ended it."""

    code: int | None
    out: str
    err: str


def command(*argv: str, cache: Path, watch: Watch | None = None, timeout: float = 120) -> Outcome:
    """Run ``streamline-bench`` with some arguments in a child.

    Args:
        *argv: The arguments.
        cache: The user's cache folder.
        watch: What to write down, and where to strike.
        timeout: Seconds after which it is killed; its code is None then.
    """
    _serve()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        env = {"STREAMLINE_CACHE": str(cache)}
        child = _FORKS.Process(target=run, args=(list(argv), out, err, env, watch))
        child.start()
        child.join(timeout)
        code = child.exitcode
        if code is None:
            child.kill()
            child.join()
        return Outcome(code, _text(out), _text(err))


def _serve() -> None:
    """Let the fork server import everything when it starts."""
    _FORKS.set_forkserver_preload(["faults.child"])
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "STREAMLINE_FAULTS")}
    os.environ["STREAMLINE_FAULTS"] = "server"
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    try:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def events(trace: Path) -> list[str]:
    """The lines of a trace."""
    return trace.read_text(encoding="utf-8").splitlines() if trace.exists() else []


def differences(found: Path, wanted: Path) -> list[str]:
    """In what a run's records, rows, plans and losses differ from another's; times do not count."""
    return _unequal(_results(found), _results(wanted), "")


def _results(folder: Path) -> dict[str, Any]:
    """What a run measured, by file."""
    texts = {
        str(file.relative_to(folder)): [json.loads(line) for line in file.open(encoding="utf-8")]
        for file in folder.glob("losses/*.jsonl")
    }
    for file in [folder / "results.json", *folder.glob("plans/*.json")]:
        texts[str(file.relative_to(folder))] = json.loads(file.read_text(encoding="utf-8"))
    for file in folder.glob("samples/*.parquet"):
        texts[str(file.relative_to(folder))] = pd.read_parquet(file).to_dict("list")
    return texts


def _unequal(found: Any, wanted: Any, place: str) -> list[str]:
    """The places where two values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in {**wanted, **found} if k not in _TIMES]
        return [line for k in keys for line in _unequal(found.get(k), wanted.get(k), f"{place}/{k}")]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, (a, b) in pairs for line in _unequal(a, b, f"{place}[{i}]")]
    same = found == wanted or (found != found and wanted != wanted)
    return [] if same else [f"{place}: {str(found)[:80]} instead of {str(wanted)[:80]}"]


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
