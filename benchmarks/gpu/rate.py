"""Row: floating-point operations per second of matrix products, the ceiling of all other rows."""

from __future__ import annotations

import torch

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome

__all__ = ["matrix_rates", "run"]

_REPEATS = 10


def matrix_rates(bench: Bench) -> dict[str, float]:
    """By shape, rows x inner x columns: operations per second in the model's dtype."""
    rates = {}
    like = {"device": bench.device, "dtype": bench.decoder.dtype}
    for rows, inner, columns in bench.sizes.matrices:
        left = torch.randn(rows, inner, **like)  # type: ignore[arg-type]
        right = torch.randn(inner, columns, **like)  # type: ignore[arg-type]
        for _ in range(3):
            left @ right
        bench.synchronize()

        def products(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            for _ in range(_REPEATS):
                left @ right

        taken = bench.seconds(products) / _REPEATS
        rates[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / taken
    return rates


def run(bench: Bench) -> Outcome:
    """Measure the row."""
    rates = matrix_rates(bench)
    return Outcome(
        name="rate",
        work=f"matrix products in {bench.decoder.dtype}",
        against="-",
        facts={"tflops": {shape: rate / 1e12 for shape, rate in rates.items()}},
    )
