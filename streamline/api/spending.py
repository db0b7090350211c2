"""What calibrating and deciding takes: seconds, FLOPs, and an accelerator's memory.

Example::

    with spending(decoder) as spent:
        method.prune(decoder, ...)
    spent["seconds"], spent["flops"], spent["peak_memory_bytes"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamline.engine.decoder import Decoder
from streamline.engine.meter import metering
from streamline.environment import peak_memory_bytes, restart_peak_memory

__all__ = ["costs_of", "spending", "with_share"]


@contextmanager
def spending(decoder: Decoder) -> Iterator[dict[str, Any]]:
    """Measure what is done within it; the values are there at its end.

    FLOPs are null where a method runs the model by a loop of its own, the peak on a CPU.

    Args:
        decoder: The dense model.
    """
    spent: dict[str, Any] = {}
    restart_peak_memory()
    with metering() as meter:
        yield spent
    spent["seconds"] = meter.seconds
    spent["flops"] = meter.flops
    spent["peak_memory_bytes"] = peak_memory_bytes(decoder.device)


def with_share(spent: Mapping[str, Any], seconds: float, together: int) -> dict[str, Any]:
    """The same with its share of work that was done for several; whose FLOPs that were is unknown.

    Args:
        spent: What it took by itself.
        seconds: Its share.
        together: For how many the work was done; 1 for none.
    """
    if together == 1:
        return dict(spent)
    unknown = {"flops": None, "peak_memory_bytes": None}
    return {**spent, **unknown, "seconds": spent["seconds"] + seconds, "with": together}


def costs_of(calibration: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, float]:
    """A record's costs of one calibration and of one method's decision by it.

    Args:
        calibration: What it took; it may be of a run that did not know.
        decision: Likewise.
    """
    both = (calibration, decision)
    found: dict[str, float] = {
        "calibrate_s": sum(one.get("seconds") or 0.0 for one in both),
        "calibrate_with": max(int(one.get("with") or 1) for one in both),
    }
    for name, merge in (("flops", sum), ("peak_memory_bytes", max)):
        known = [one[name] for one in both if one.get(name) is not None]
        if len(known) == len(both):
            found[f"calibrate_{name}"] = merge(known)
    return found
