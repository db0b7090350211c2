"""Which fraction of the machine's measured matrix-product rate scoring reaches.

Counted are useful operations only: every distinct token of a prefix tree once through the layers'
linear maps and its attention over its own ancestors, and the head once at each distinct place that
is scored. Norms, softmax, rotations, padding and repeated tokens count for nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamline.benchmarks.speed.bf16 import in_bfloat16
from streamline.benchmarks.speed.common import Options, Outcome, loaded, profile
from streamline.benchmarks.speed.questions import Questions, slices, task_parts
from streamline.engine.decoder import Decoder
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.score import score

__all__ = ["QUESTIONS", "distinct", "fractions", "matrix_rate", "run", "useful_operations"]

QUESTIONS = {"quick": 6, "default": 30, "full": 100}
_SIZES = ((2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576))
"""Rows, inner and columns of the products measured: a large square and the model's own shapes."""


Rates = dict[str, dict[str, float]]
"""By clock (``wall`` or ``cpu``) and shape: floating-point operations per second."""


def matrix_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> Rates:
    """Floating-point operations per second of matrix products, by clock and shape.

    Each is measured as a plain product and, where torch can, with the right factor laid out once
    as in :mod:`streamline.engine.kernels`; the faster counts.

    Args:
        dtype: Of both factors.
        seconds: How long each shape is repeated. Times are means, as those of scoring are, so that
            what else the machine does weighs on both.
    """
    rates: Rates = {"wall": {}, "cpu": {}}
    for rows, inner, columns in _SIZES:
        left = torch.randn(rows, inner).to(dtype)
        layer = nn.Linear(inner, columns, bias=False).to(dtype).requires_grad_(False)
        ways = [_seconds(layer, left, seconds, fast) for fast in (False, True)]
        for clock, times in zip(("wall", "cpu"), zip(*ways, strict=True), strict=True):
            rates[clock][f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / min(times)
    return rates


def _seconds(layer: nn.Linear, rows: Tensor, limit: float, fast: bool) -> tuple[float, float]:
    """Mean time of one product: by the wall clock, and of the processor."""
    with FastLinears([layer] if fast else [], layer).active():
        layer(rows)
        n, used, started = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - started < limit / 2:
            layer(rows)
            n += 1
        return (time.perf_counter() - started) / n, (time.process_time() - used) / n


def distinct(requests: Sequence[Request]) -> tuple[int, int, int]:
    """Nodes of the requests' prefix trees, their summed depths, and scored places.

    Returns:
        Distinct tokens; for these the sum of the numbers of tokens each attends to, itself
        included; distinct places whose output is scored. Tasks share nothing.
    """
    tokens = attended = places = 0
    tasks: dict[str, list[Request]] = {}
    for request in requests:
        tasks.setdefault(request.task, []).append(request)
    for members in tasks.values():
        before: tuple[int, ...] = ()
        scored: set[tuple[int, ...]] = set()
        for request in sorted(members, key=lambda r: r.inputs):
            ids = request.inputs
            shared = 0
            while shared < min(len(ids), len(before)) and ids[shared] == before[shared]:
                shared += 1
            tokens += len(ids) - shared
            attended += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
            scored.update(ids[:n] for n in range(len(request.context), len(ids) + 1))
            before = ids
        places += len(scored)
    return tokens, attended, places


def useful_operations(decoder: Decoder, requests: Sequence[Request]) -> dict[str, float]:
    """Operations that answering the requests on the dense model needs, a product counting two."""
    tokens, attended, places = distinct(requests)
    weights = sum(
        part.weight.numel()
        for layer in decoder.layers
        for part in layer.modules()
        if isinstance(part, nn.Linear)
    )
    config = decoder.config
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return {
        "linear": 2.0 * weights * tokens,
        "attention": 4.0 * heads * head_dim * attended * decoder.n_layers,
        "head": 2.0 * config.hidden_size * config.vocab_size * places,
    }


def run(options: Options) -> Outcome:
    """Measure the fraction in float32, and in bfloat16 beside; the medians of the repetitions."""
    model, tokenizer = loaded(options.model)
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    parts = task_parts(["commonsense"], tokenizer, model, n_each * options.repeats)
    cuts = slices(parts, n_each, options.repeats)
    path = dense_path(Decoder(model))
    (light,) = in_bfloat16([path])
    runs = {
        str(dtype).removeprefix("torch."): fractions(some, cuts, dtype)
        for some, dtype in ((path, torch.float32), (light, torch.bfloat16))
    }
    values = {
        dtype: {
            clock: statistics.median(run["fraction"][clock] for run in found)
            for clock in ("wall", "cpu")
        }
        for dtype, found in runs.items()
    }
    return Outcome(
        name="rate",
        work=f"scoring {n_each * options.repeats} questions of each commonsense task, dense",
        against="this machine's fastest measured float32 matrix product (right before and after)",
        target=0.6,
        value=values["float32"]["wall"],
        facts={
            "runs": [run for found in runs.values() for run in found],
            "value_cpu": values["float32"]["cpu"],
            "profile": profile(lambda: score([path], cuts[0].requests)),
            "bf16": {
                "ratio": values["bfloat16"]["wall"],
                "cpu": values["bfloat16"]["cpu"],
                "against": "the fastest measured bfloat16 product",
            },
        },
        notes=["Useful operations only; the value is a fraction, not a ratio of times."],
    )


def fractions(path: Path, cuts: Sequence[Questions], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Products before and after each scoring, and what fraction of the fastest is reached."""
    score([path], cuts[0].requests[:8])  # warm up
    runs: list[dict[str, Any]] = []
    for cut in cuts:
        before = matrix_rate(dtype)
        started, used = time.perf_counter(), time.process_time()
        score([path], cut.requests)
        taken = {"wall": time.perf_counter() - started, "cpu": time.process_time() - used}
        after = matrix_rate(dtype)
        operations = useful_operations(path.decoder, cut.requests)
        reached = {clock: sum(operations.values()) / taken[clock] for clock in taken}
        rates = {
            clock: {shape: (rate + after[clock][shape]) / 2 for shape, rate in found.items()}
            for clock, found in before.items()
        }
        runs.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "seconds": taken,
                "operations": operations,
                "rate": reached,
                "fraction": {clock: reached[clock] / max(rates[clock].values()) for clock in taken},
                "matrix_rates": rates,
                "tokens_per_s": distinct(cut.requests)[0] / taken["wall"],
            }
        )
    return runs
