"""Fresh processes that need not import anything: seconds less for each.

A process imports everything and waits; each child is a copy of it, with an environment of its own.
The libraries look at a hub's address and at the place of their files when they are imported: one
process waits for each such environment.

Example::

    with Nursery() as nursery:
        nursery.run("import os; print(os.environ['HF_ENDPOINT'])", [], env=env, folder=tmp_path)
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

_MOST = 2  # that wait at once
_WAITS = """
import gc, json, os, sys, threading
from everything import import_everything
import_everything()
os.fsync = lambda _: None  # as in the tests
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)
assert threading.active_count() == 1
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["env"])
for number, file in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
sys.argv = ["-c", *asked["arguments"]]
exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class Nursery:
    """The process that waits, for as long as the ``with`` block lasts."""

    def __enter__(self) -> Nursery:
        """Nothing is begun before the first child is asked for."""
        self._waiting: dict[frozenset[tuple[str, str]], subprocess.Popen[str]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        """End those that wait, and a child that one of them waits for."""
        while self._waiting:
            self._end(next(iter(self._waiting)))

    def _end(self, known: frozenset[tuple[str, str]]) -> None:
        waiting = self._waiting.pop(known)
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.communicate()

    def run(
        self,
        code: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        limit_s: float = 250,
    ) -> subprocess.CompletedProcess[str]:
        """Run code to its end.

        Args:
            code: As for ``python -c``.
            arguments: Its arguments.
            env: Its whole environment.
            folder: Where it runs.
            limit_s: Seconds after which it is killed.

        Raises:
            TimeoutExpired: If it took longer.
        """
        # all but the token, which is looked for when it is needed
        known = frozenset(
            (name, env[name]) for name in env if name.startswith("HF_") and name != "HF_TOKEN"
        )
        if known not in self._waiting:
            if len(self._waiting) == _MOST:
                self._end(next(iter(self._waiting)))
            self._waiting[known] = subprocess.Popen(
                [sys.executable, "-c", _WAITS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**env, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        out, err = (folder / f".{uuid.uuid4().hex}.{name}" for name in ("out", "err"))
        asked = {
            "code": code,
            "arguments": list(arguments),
            "env": dict(env),
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
        }
        stdin, stdout = self._waiting[known].stdin, self._waiting[known].stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], limit_s)[0]:
            self._end(known)
            raise subprocess.TimeoutExpired(code, limit_s, err.read_text(encoding="utf-8"))
        ended = int(stdout.readline())
        said, complained = (file.read_text(encoding="utf-8") for file in (out, err))
        out.unlink()
        err.unlink()
        return subprocess.CompletedProcess(code, ended, said, complained)
