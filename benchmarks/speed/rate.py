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

import torch
from torch import Tensor, nn

from streamline.benchmarks.speed.common import Options, Outcome, loaded, profile
from streamline.benchmarks.speed.questions import slices, task_parts
from streamline.cpu_linear import FastLinears
from streamline.decoder import Decoder
from streamline.evaluation.packing import Request
from streamline.evaluation.scoring import score
from streamline.paths import dense_path

__all__ = ["QUESTIONS", "distinct", "matrix_rate", "run", "useful_operations"]

QUESTIONS = {"quick": 6, "default": 30, "full": 100}
_SIZES = ((2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576))
"""Rows, inner and columns of the products measured: a large square and the model's own shapes."""


def matrix_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> dict[str, float]:
    """Floating-point operations per second of matrix products, by shape.

    Each is measured as a plain product and, where torch can, with the right factor laid out once
    as in :mod:`streamline.cpu_linear`; the faster counts.

    Args:
        dtype: Of both factors.
        seconds: How long each shape is repeated; the median of single products counts.
    """
    rates = {}
    for rows, inner, columns in _SIZES:
        left = torch.randn(rows, inner).to(dtype)
        layer = nn.Linear(inner, columns, bias=False).to(dtype).requires_grad_(False)
        rates[f"{rows}x{inner}x{columns}"] = (
            2
            * rows
            * inner
            * columns
            / min(_seconds(layer, left, seconds, fast) for fast in (0, 1))
        )
    return rates


def _seconds(layer: nn.Linear, rows: Tensor, limit: float, fast: int) -> float:
    """Median time of one product."""
    times: list[float] = []
    with FastLinears([layer] if fast else [], layer).active():
        layer(rows)
        while sum(times) < limit / 2:
            started = time.perf_counter()
            layer(rows)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


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
    """Measure the fraction: products before and after each scoring, the median of fractions."""
    model, tokenizer = loaded(options.model)
    decoder = Decoder(model)
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    parts = task_parts(["commonsense"], tokenizer, model, n_each * options.repeats)
    cuts = slices(parts, n_each, options.repeats)
    paths = [dense_path(decoder)]
    score(paths, cuts[0].requests[:8])  # warm up
    fractions, runs = [], []
    for cut in cuts:
        before = matrix_rate()
        started = time.perf_counter()
        score(paths, cut.requests)
        seconds = time.perf_counter() - started
        after = matrix_rate()
        operations = useful_operations(decoder, cut.requests)
        rates = {shape: (before[shape] + after[shape]) / 2 for shape in before}
        reached = sum(operations.values()) / seconds
        fractions.append(reached / max(rates.values()))
        runs.append(
            {
                "seconds": seconds,
                "operations": operations,
                "rate": reached,
                "matrix_rates": rates,
                "fraction_by_shape": {shape: reached / rate for shape, rate in rates.items()},
                "tokens_per_s": distinct(cut.requests)[0] / seconds,
            }
        )
    return Outcome(
        name="rate",
        work=f"scoring {n_each * options.repeats} questions of each commonsense task, dense",
        against="this machine's fastest measured float32 matrix product (right before and after)",
        target=0.6,
        value=statistics.median(fractions),
        facts={"runs": runs, "profile": profile(lambda: score(paths, cuts[0].requests))},
        notes=["Useful operations only; the value is a fraction, not a ratio of times."],
    )
