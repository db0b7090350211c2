"""Run the rows of the accelerator table and write them down.

Example::

    python -m streamline.benchmarks.gpu --seconds 460 --out out/gpu
    python -m streamline.benchmarks.gpu --rows dense,sleb --device cuda:1
    python -m streamline.benchmarks.gpu --shape tiny --device cpu       # everything, in small
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamline.benchmarks.gpu.bench import Bench
    from streamline.benchmarks.speed.common import Outcome

__all__ = ["ROWS", "main"]

ROWS = {
    "rate": "rate:run",
    "encoding": "encoding:run",
    "dense": "dense:run",
    "sleb": "sleb:run",
    "levels-sleb": "levels:sleb",
    "variants": "variants:run",
    "levels-variants": "levels:variants",
    "spans": "spans:run",
    "students": "students:run",
    "generation": "generation:run",
    "continuous": "generation:continuous",
    "pruned": "pruned:run",
    "slicegpt": "slicegpt:run",
    "memory": "memory:run",
    "start": "start:run",
    "agreement": "agreement:run",
}
"""The rows, in the order in which they run: ``module:function`` of this package."""


def main(arguments: list[str] | None = None) -> int:
    """Run the rows.

    Args:
        arguments: Command line; None takes the process's.

    Returns:
        0 if every row that ran has a result, else 1.
    """
    given = _parse(arguments)
    started = time.perf_counter()

    import torch

    from streamline.benchmarks.gpu.bench import Bench
    from streamline.benchmarks.gpu.report import Report
    from streamline.environment import hush, pick_device, versions
    from streamline.run.commands import checkout

    hush()
    device = pick_device(given.device)
    inputs = given.inputs or ("made-up" if given.shape == "tiny" else "packaged")
    bench = Bench.build(
        given.shape,
        device,
        getattr(torch, given.dtype),
        inputs=inputs,
        tokenizer=given.tokenizer,
    )
    facts = {
        "made": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": checkout()},
        "device": versions(given.device)["device"],
        "versions": versions(given.device),
        "shape": given.shape,
        "dtype": given.dtype,
        "inputs": inputs,
        "parameters": bench.decoder.n_parameters(),
        "seconds_given": given.seconds,
        "seconds_until_ready": time.perf_counter() - started,
    }
    print(f"{facts['device']}: ready after {facts['seconds_until_ready']:.0f} s", flush=True)
    report = Report(folder=given.out, facts=facts)
    for name in given.rows:
        before = time.perf_counter()
        if before - started > given.seconds:
            report.skipped.append(name)
            print(f"{name}: skipped, {given.seconds:g} s are over", flush=True)
            report.save()
            continue
        print(f"{name} ...", flush=True)
        try:
            outcome = _run(name, bench)
        except Exception as error:  # one row must not cost the others
            report.failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            print(f"{name}: FAILED: {report.failed[name]}", flush=True)
        else:
            taken = time.perf_counter() - before
            report.rows.append(outcome.to_json() | {"seconds": taken})
            ratio = outcome.ratio()
            shown = "" if ratio is None else f"{ratio:.2f}, "
            print(f"{name}: {shown}{taken:.0f} s; {outcome.facts}", flush=True)
            for race in outcome.races:
                print(f"  {race}", flush=True)
        report.save()
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    print(report.markdown(), flush=True)
    return 1 if report.failed else 0


def _run(name: str, bench: Bench) -> Outcome:
    module, function = ROWS[name].split(":")
    outcome: Outcome = getattr(importlib.import_module(f"{__package__}.{module}"), function)(bench)
    return outcome


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m streamline.benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rows", help=f"some of: {','.join(ROWS)} (default: all)")
    parser.add_argument("--shape", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--inputs", choices=("packaged", "made-up"), help="questions; made-up at tiny shape"
    )
    parser.add_argument("--tokenizer", help="folder or model; the embedded model's by default")
    parser.add_argument(
        "--seconds", type=float, default=460.0, help="no row begins later than this (default 460)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    given = parser.parse_args(arguments)
    given.rows = list(ROWS) if given.rows is None else given.rows.split(",")
    unknown = [name for name in given.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
