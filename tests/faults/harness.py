"""Runs of the real command in children of one process that has imported everything.

The process is Python's own fork server; a child costs a fork, so that a run of a tiny model takes
about a second.

Example::

    verb = Verb("run", world, place)
    verb.carry_out(at="rename results.json")        # killed before the first record is there
    assert verb.carry_out().code == 0
    assert differences(verb, undisturbed) == []
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from faults.child import Watch, run
from safetensors import safe_open

__all__ = ["Outcome", "Running", "Verb", "differences"]

_FORKS = multiprocessing.get_context("forkserver")
_TIMES = {"checksum", "seconds", "calibrate_s", "train_s", "eval_s", "peak_memory_bytes"}
_TIMES |= {"calibrate_peak_memory_bytes", "train_peak_memory_bytes"}
_TIMES |= {"prefill", "decode", "time_to_first_token_seconds", "dense_time_to_first_token_seconds"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a negative code is the signal that ended it."""

    code: int | None
    out: str
    err: str


class Running:
    """A command in a child.

    Args:
        argv: Its arguments.
        env: What its environment has beside this process's.
        watch: What to write down, and where to strike.
        settings: Names of the package with the values that they have in the child.
    """

    def __init__(
        self, argv: list[str], env: dict[str, str], watch: Watch, settings: dict[str, Any]
    ) -> None:
        _serve()
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name, name) for name in ("out", "err")]
        given = (argv, *self._texts, env, watch, settings)
        self.process = _FORKS.Process(target=run, args=given)
        self.process.start()

    @property
    def pid(self) -> int:
        """The child's number."""
        assert self.process.pid is not None
        return self.process.pid

    def end(self, timeout: float = 120) -> Outcome:
        """Wait until it has ended; it is killed after a while, and its code is None then."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in self._texts]
        self._folder.cleanup()
        return Outcome(code, *texts)


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


@dataclass(frozen=True)
class Verb:
    """A command of the little world in a folder of its own, which can be given again and again.

    Attributes:
        name: The verb.
        world: Where :func:`faults.world.build` wrote.
        place: Holds what the command makes, in ``work``, the cache and the trace.
    """

    name: str
    world: Path
    place: Path

    @property
    def work(self) -> Path:
        """What is watched."""
        return self.place / "work"

    @property
    def out(self) -> Path:
        """What is given as ``--out``."""
        return self.work / ("record.json" if self.name == "evaluate" else "out")

    @property
    def trace(self) -> Path:
        """What happened in all children so far."""
        return self.place / "trace"

    def argv(self) -> list[str]:
        """The command's arguments."""
        model, suite = str(self.world / "model"), str(self.world / "suite.yaml")
        run = ["--suite", suite, "--out", str(self.out)]
        words = {
            "run": run,
            "search": ["--suite", str(self.world / "search.yaml"), "--out", str(self.out)],
            "shard": [*run, "--shard", "1/2"],
            "other shard": [*run, "--shard", "2/2"],
            "merge": ["merge", str(self.out)],
            "report": ["report", str(self.out)],
            "evaluate": ["evaluate", model, "--tasks", "piqa,streamline_xsum", "--data-dir"]
            + [str(self.world / "data"), "--device", "cpu", "--out", str(self.out)],
            "prune": ["prune", model, "--method", "llm-streamline-ffn", "--sparsity", "0.3"]
            + ["--suite", suite, "--no-verify", "--out", str(self.out)],
        }
        return words[self.name]

    def begin(
        self,
        at: str | None = None,
        strike: signal.Signals | str = signal.SIGKILL,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> Running:
        """Give the command.

        Args:
            at: The event before which it is struck, if any.
            strike: A signal, or ``fill`` or ``limit`` for a full disk.
            env: More of its environment.
            **settings: ``module__NAME`` of the package with the value that it has in the child.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        watch = Watch(self.work, self.trace, at, strike)
        env = {"STREAMLINE_CACHE": str(self.place / "cache")} | (env or {})
        return Running(self.argv(), env, watch, settings)

    def carry_out(
        self, at: str | None = None, strike: signal.Signals | str = signal.SIGKILL
    ) -> Outcome:
        """Give the command and wait until it has ended."""
        return self.begin(at, strike).end()

    def events(self) -> list[str]:
        """The lines of the trace."""
        return self.trace.read_text(encoding="utf-8").splitlines() if self.trace.exists() else []

    def results(self) -> dict[str, Any]:
        """What the command made, by file, without times."""
        return {
            str(file.relative_to(self.work)): _content(file)
            for file in sorted(self.work.rglob("*"))
            if file.is_file() and self._made(file.relative_to(self.work))
        }

    def _made(self, file: Path) -> bool:
        """Whether a file is a result, rather than what only saves work."""
        if any(part.startswith(".") for part in file.parts):
            return False
        if self.name in ("run", "search"):
            return file.parts[1] in ("results.json", "samples", "plans", "losses", "tables")
        return file.parts[0] in ("out", "record.json", "record.parquet")

    def leftovers(self) -> list[str]:
        """Temporary files that are still there."""
        kept = (".record-run", ".report.json")
        hidden = [f for f in self.work.rglob(".*") if not f.name.endswith(".lock")]
        return [str(file.relative_to(self.work)) for file in hidden if file.name not in kept]


def differences(found: Verb, wanted: Verb, rounding: float = 0.0) -> list[str]:
    """In what a command's results differ from another's; times and their checksums are left out.

    Args:
        found: One command.
        wanted: The other.
        rounding: How far numbers may be apart, as a part of them.
    """
    unequal = partial(_unequal, same=partial(_same, rounding=rounding))
    return unequal(found.results(), wanted.results(), "")


def _same(found: Any, wanted: Any, rounding: float) -> bool:
    """Whether two values are the same; NaN is NaN."""
    if found == wanted or (found != found and wanted != wanted):
        return True
    floats = isinstance(found, float) and isinstance(wanted, float)
    return floats and math.isclose(found, wanted, rel_tol=rounding, abs_tol=rounding)


def _content(file: Path) -> Any:
    """A file's content, as values where it has times in it."""
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    if file.suffix in (".csv", ".tex", ".md", ".html", ".svg") or file.parent.name == "tables":
        return file.name  # there; made from the records and their times
    if file.suffix == ".parquet":
        return pd.read_parquet(file).to_dict("list")
    if file.suffix == ".safetensors":
        return _tensors(file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _tensors(file: Path) -> Any:
    """Metadata, whose order in the file is random, and what each tensor holds."""
    with safe_open(file, "pt") as stream:
        names = stream.keys()
        return stream.metadata(), {n: stream.get_tensor(n).tolist() for n in names}


def _unequal(found: Any, wanted: Any, place: str, same: Callable[[Any, Any], bool]) -> list[str]:
    """The places where two values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in {**wanted, **found} if k not in _TIMES]
        return [
            line
            for k in keys
            for line in _unequal(found.get(k), wanted.get(k), f"{place}/{k}", same)
        ]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, (a, b) in pairs for line in _unequal(a, b, f"{place}[{i}]", same)]
    return (
        [] if same(found, wanted) else [f"{place}: {str(found)[:80]} instead of {str(wanted)[:80]}"]
    )
