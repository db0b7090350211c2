"""The peak memory of a piece of work: of this process, or of one function in a process of its own.

A process of its own, started by :func:`streamline.benchmarks.speed.common.peak_bytes`, gives
numbers that nothing ran before; Linux can also start the count anew within a process.

Example::

    python -m streamline.benchmarks.speed.peak spans ours '["smollm2-135m-instruct", 4]'
"""

from __future__ import annotations

import ctypes
import importlib
import json
import resource
import sys
from pathlib import Path

__all__ = ["largest_resident", "main", "restart"]


def largest_resident() -> int:
    """Largest resident set of this process so far, in bytes.

    ``ru_maxrss`` would also count the parent's memory from before this program was started, so
    Linux is asked for the present program's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart() -> int | None:
    """Give freed memory back and count the largest resident set from here on.

    Returns:
        Bytes resident now, or None where the count cannot be started anew.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):
        return None
    return largest_resident()


def main(module: str, function: str, arguments: str) -> dict[str, int]:
    """Call the function and take the memory before and after."""
    marks: list[int] = []

    def ready() -> None:
        marks.append(largest_resident())

    work = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    work(ready, *json.loads(arguments))
    return {"before": marks[0], "peak": largest_resident()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:4])) + "\n")
