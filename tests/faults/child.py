"""What happens in a child: the real command, watched, and struck at one of its events.

Events are what Python's audit hooks report of files below one folder (opened for writing, renamed,
removed), before it happens, and marks of work: a training step made, a step saved,
a model's answers kept, a text generated. A line is written for each, so that what happened is known
after a kill.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import Any

from everything import import_everything
from undrawn import leave_blank

__all__ = ["Watch", "run"]

_UNIQUE = re.compile(r"^\.(.+?)\.[0-9a-f]{32}\.tmp$")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Watch:
    """What to write down of a command, and where to strike it.

    Attributes:
        folder: Only files below it are watched.
        trace: Receives one line for each event; what earlier children wrote stays.
        at: The event before which it is struck, the first time; None lets it run to its end.
        strike: A signal; ``fill``: no block of the folder's file system is left free; or ``limit``:
            the process can write no more to any file, which needs no file system of its own.
    """

    folder: Path
    trace: Path
    at: str | None = None
    strike: signal.Signals | str = signal.SIGKILL


def run(
    argv: list[str],
    out: Path,
    err: Path,
    env: dict[str, str],
    watch: Watch,
    settings: dict[str, Any],
) -> None:
    """Run the command line with its output in two files; ends the process with its exit code.

    Args:
        argv: The command's arguments.
        out: Receives its standard output.
        err: Receives its standard error.
        env: What its environment has beside this process's.
        watch: What to write down, and where to strike.
        settings: ``module__NAME`` of the package to a value.
    """
    os.environ.update(env)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    os.fsync = lambda _: None  # nothing here cuts the power
    import torch

    torch.set_num_threads(1)
    for name, value in settings.items():
        module, _, constant = name.partition("__")
        setattr(importlib.import_module(f"streamline.{module}"), constant, value)
    leave_blank(setattr)
    _marked(_watched(watch))
    from streamline.cli.main import main

    main(argv)


def _watched(watch: Watch) -> Callable[[str], None]:
    """Report events from now on; the function takes more of them."""
    stream = os.open(watch.trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    struck = False

    def emit(name: str) -> None:
        nonlocal struck
        with suppress(OSError):  # the trace too is beyond the limit
            os.write(stream, f"{name}\n".encode())
        if name == watch.at and not struck:
            struck = True
            os.write(stream, b"struck\n")
            if watch.strike == "fill":
                fill(watch.folder)
            elif watch.strike == "limit":
                limit()
            else:
                os.kill(os.getpid(), watch.strike)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & _WRITING
            paths = args[:1] if writes else ()
        elif event in ("os.rename", "os.remove", "os.truncate"):
            paths = args[1:2] if event == "os.rename" else args[:1]
        else:
            return
        for path in paths:
            name = _name(path, watch.folder)
            if name is not None and not name.endswith((".lock", "filler")):
                emit(f"{event.removeprefix('os.')} {name}")

    sys.addaudithook(audit)
    return emit


def _name(path: Any, folder: Path) -> str | None:
    """A file's name below the folder, without what is unique to its temporary name."""
    if isinstance(path, int):
        return None
    text = os.fsdecode(path)
    if not text.startswith(f"{folder}/"):
        return None
    parts = Path(text).relative_to(folder).parts
    return "/".join(_UNIQUE.sub(r"\1 (temporary)", part) for part in parts)


def fill(folder: Path) -> None:
    """Leave no free block on the folder's file system."""
    with (folder / "filler").open("ab", buffering=0) as stream:
        for size in (65536, 4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


def limit() -> None:
    """Let this process write to no file any more; what it says reaches its files by another one."""
    for number in (1, 2):
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=number)
        assert writer.stdin is not None
        os.dup2(writer.stdin.fileno(), number)
        writer.stdin.close()
        util.Finalize(None, _closed, (number, writer), exitpriority=0)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))


def _closed(number: int, writer: subprocess.Popen[bytes]) -> None:
    """Say no more, and wait until all was written."""
    (sys.stdout if number == 1 else sys.stderr).flush()
    os.close(number)
    writer.wait()


def _marked(emit: Callable[[str], None]) -> None:
    """Emit what is done and what is kept; everything is saved as soon as it can be."""
    from streamline.calibration import Calibration
    from streamline.evaluation.answer_store import AnswerStore
    from streamline.evaluation.generation import answers
    from streamline.evaluation.scoring import unfinished
    from streamline.training import fit, lora
    from streamline.training.state import TrainingState

    fit.fit.__kwdefaults__["save_seconds"] = lora.fine_tune.__kwdefaults__["save_seconds"] = 0.0
    answers.SAVE_EVERY_S = unfinished.SAVE_EVERY_S = 0.0
    steps: dict[str, list[int]] = {}

    def step(state: TrainingState, *_: Any) -> None:
        steps.setdefault(f"{state.directory} {state.label}", []).append(state.step)
        emit(f"step {state.label} {state.step}")

    def saved(state: TrainingState, *_: Any) -> None:
        for number in steps.pop(f"{state.directory} {state.label}", []):
            emit(f"kept step {state.label} {number}")

    _after(TrainingState, "update", step)
    _after(TrainingState, "save", saved)
    _after(TrainingState, "finish", saved)
    _after(Calibration, "save", lambda _, folder: emit(f"kept calibration {folder.name}"))
    _after(AnswerStore, "write", lambda _, key, name, *__: emit(f"kept answers {key[:8]} {name}"))

    def batches(of: unfinished.Unfinished, results: Any) -> None:
        for file, (items, _) in zip(of.files, results, strict=True):
            emit(f"kept batches {file.parent.name[:8]} {file.name} {len(items)}")

    _after(unfinished.Unfinished, "write", batches)
    generate = answers.generate_shared

    def generated(paths: Any, prompts: Any, *args: Any, written: Any, **options: Any) -> Any:
        def one(path: int, prompt: int, tokens: list[int]) -> None:
            written(path, prompt, tokens)
            emit(f"kept text {paths[path].name} {hash(prompts[prompt].tokens)}")

        return generate(paths, prompts, *args, written=one, **options)

    answers.generate_shared = generated


def _after(owner: type, name: str, done: Callable[..., None]) -> None:
    """Call a function with a method's arguments after the method."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        done(*args)
        return result

    setattr(owner, name, wrapped)


if __name__ != "__mp_main__" and os.environ.get("STREAMLINE_FAULTS") == "server":
    import_everything()
