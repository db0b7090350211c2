"""Run rows of the speed table and write them down.

Example::

    python -m streamline.benchmarks.speed sleb spans --repeats 5
    python -m streamline.benchmarks.speed --quick --out out/speed
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from streamline.benchmarks.speed.report import APART, ROWS, save

__all__ = ["main"]

HELP = f"of: {', '.join(ROWS)}; none for all but {', '.join(APART)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the rows.

    Args:
        arguments: Command line; None takes the process's.

    Returns:
        0 if every row ran and its results agreed, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m streamline.benchmarks.speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=HELP)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="the smallest size")
    sizes.add_argument("--full", action="store_true", help="100 questions a task; hours")
    parser.add_argument("--repeats", type=int, default=3, help="paired repetitions (default 3)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, default=Path("reports/speed"))
    given = parser.parse_args(arguments)
    unknown = [row for row in given.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")

    import torch

    from streamline.benchmarks.speed.common import Options
    from streamline.errors import StreamlineError

    if given.threads:
        torch.set_num_threads(given.threads)
    size = "quick" if given.quick else "full" if given.full else "default"
    options = Options(size=size, repeats=given.repeats, model=given.model)
    failed = False
    for name in given.rows or [row for row in ROWS if row not in APART]:
        started = time.perf_counter()
        print(f"{name} ...", flush=True)
        try:
            outcome = importlib.import_module(f"{__package__}.{name}").run(options)
        except StreamlineError as error:
            failed = True
            print(f"{name}: FAILED: {error}", flush=True)
            continue
        save(outcome, given.out, size)
        target = "" if outcome.target is None else f" (target {outcome.target})"
        seconds = time.perf_counter() - started
        print(f"{name}: {outcome.ratio():.2f}{target}, {seconds:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
