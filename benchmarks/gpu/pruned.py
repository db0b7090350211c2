"""Row: how fast pruned models themselves are, each in turn with the dense model, as in a run."""

from __future__ import annotations

from typing import Any

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.variants import variants
from streamline.benchmarks.speed.common import Outcome
from streamline.evaluation.efficiency.measure import Beside

__all__ = ["run"]

_KINDS = 2  # the first variants of the last sparsity: layers dropped, and a network in their place
_SECONDS = 12.0  # for each, after which no further round is begun


def run(bench: Bench) -> Outcome:
    """Measure the row."""
    sparsities = bench.sizes.sparsities[-1:]
    beside = Beside(bench.decoder, "quick")
    paths = variants(bench, sparsities)[1 : 1 + _KINDS]
    return Outcome(
        name="pruned",
        work=f"prefill and decoding of {len(paths)} models at sparsity {sparsities[0]}, batches of "
        "1 and 8, prompts of "
        f"{beside.sizes.length} tokens",
        against="the dense model, in turn",
        facts={path.name: _shown(beside.measure(path, _SECONDS)) for path in paths},
        notes=["A ratio is the dense model's time over the variant's, the median of the pairs."],
    )


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """What the table has of a measurement."""
    shown: dict[str, Any] = {"way": found.get("way")}
    for phase in ("prefill", "decode"):
        for speed in found.get(phase, ()):
            name, ratio = f"{phase} of {speed['batch']}", speed["ratio"]
            shown[f"{name}, ratio"] = None if ratio is None else ratio["median"]
            shown[f"{name}, tokens/s"] = speed["tokens_per_second"]["median"]
    for side in ("peak_memory_bytes", "dense_peak_memory_bytes"):
        shown[side.replace("_", " ")] = found.get(side)
    return shown | {name: found[name] for name in ("reason", "note") if name in found}
