"""Row: how long SliceGPT takes, the longest of all prunings, what it holds, and its two factors."""

from __future__ import annotations

import time
from typing import Any

import torch

from streamline.baselines.slicegpt import SliceGPT
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.memory import SPARSITY, against_plan, plan_of
from streamline.benchmarks.speed.common import Outcome
from streamline.methods.linear_algebra import eigenvectors, random_rotation
from streamline.training.student import Recipe

__all__ = ["run"]


def run(bench: Bench) -> Outcome:
    """Measure the row."""
    decoder, method = bench.decoder, SliceGPT()
    n, length = bench.sizes.span_tokens
    tokens = bench.inputs.tokens(n, length)
    width, hidden = method.width(decoder, SPARSITY), decoder.hidden_size
    noise = torch.randn(2 * hidden, hidden, dtype=torch.float64, device=bench.device)
    moment = noise.T @ noise
    generator = torch.Generator().manual_seed(0)
    eigenvectors(moment)  # warm up
    each = {
        "eigenvectors": bench.seconds(lambda: eigenvectors(moment)),
        "rotation": bench.seconds(lambda: random_rotation(width, generator, bench.device)),
    }
    nothing: Any = None
    taken = [0.0]

    def prune() -> None:
        started = time.perf_counter()
        method.prune(decoder, nothing, SPARSITY, tokens, 0)
        bench.synchronize()
        taken[0] = time.perf_counter() - started

    memory = against_plan(bench, plan_of(bench, Recipe()), "prune", prune)
    return Outcome(
        name="slicegpt",
        work=f"{hidden} sliced to {width}, {n} x {length} tokens",
        against="-",
        facts={
            "seconds": taken[0],
            "aim_seconds": 10.0,
            "bases": 2 * decoder.n_layers + 1,
            "seconds_each": each,
            "memory": memory,
        },
        notes=["Each basis takes the eigenvectors of a moment and one random rotation, float64."],
    )
