"""Fresh processes that need not import what knows nothing of a hub: seconds less for each.

One process imports that and waits; each child is a copy of it that reads its environment anew and
imports the hub's clients, transformers and this package itself.

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

_WAITS = """
import json, os, sys
import numpy, pandas, pyarrow.parquet, scipy.stats, sympy, torch
assert "huggingface_hub" not in sys.modules
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
        self._waiting: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and a child that it waits for."""
        if self._waiting is not None:
            os.killpg(self._waiting.pid, signal.SIGKILL)
            self._waiting.communicate()
            self._waiting = None

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
        if self._waiting is None:
            self._waiting = subprocess.Popen(
                [sys.executable, "-c", _WAITS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
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
        stdin, stdout = self._waiting.stdin, self._waiting.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], limit_s)[0]:
            self.__exit__()
            raise subprocess.TimeoutExpired(code, limit_s, err.read_text(encoding="utf-8"))
        ended = int(stdout.readline())
        said, complained = (file.read_text(encoding="utf-8") for file in (out, err))
        out.unlink()
        err.unlink()
        return subprocess.CompletedProcess(code, ended, said, complained)
