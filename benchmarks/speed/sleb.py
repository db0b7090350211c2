"""Row: SLEB's greedy search to 25 %, against the naive loop of whole models."""

from __future__ import annotations

import time
from typing import Any

from streamline.baselines.sleb import SLEB
from streamline.benchmarks.speed import published
from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    loaded,
    require_close,
    require_equal,
)
from streamline.benchmarks.speed.spans import samples
from streamline.budget import layers_to_remove
from streamline.decoder import Decoder

__all__ = ["SAMPLES", "SPARSITY", "run", "same"]

SAMPLES = {"quick": (1, 64), "default": (1, 128), "full": (10, 128)}
"""Sequences of each repetition, and their tokens."""
SPARSITY = {"quick": 0.05, "default": 0.25, "full": 0.25}
TOLERANCE = 1e-4


def same(results: dict[str, Any]) -> dict[str, Any]:
    """Compare picks and losses; each side is ``(order, losses)``."""
    (order, losses), (other_order, other_losses) = results["ours"], results["theirs"]
    require_equal("layers in the order of their removal", order, other_order)
    gap = require_close("losses", losses, other_losses, TOLERANCE, relative=True)
    return {"max_relative_difference": gap, "order": order}


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    decoder, method = Decoder(model), SLEB(n_samples=None, length=None)
    n, length = SAMPLES[options.size]
    n_remove = layers_to_remove(decoder, SPARSITY[options.size])
    cuts = samples(tokenizer, n * options.repeats, length).split(n)
    outcome = Outcome(
        name="sleb",
        work=f"SLEB to {SPARSITY[options.size]:.0%} ({n_remove} of {decoder.n_layers} layers), "
        f"{n} sequence(s) of {length} tokens per trial",
        against="the naive greedy loop, every trial a whole model",
        target=1.8,
    )
    if options.size != "full":
        outcome.notes.append("--full takes the method's own 10 sequences of 128 tokens per trial.")
    counts: list[dict[str, float]] = []

    def ours(index: int) -> tuple[list[int], list[float]]:
        started = time.perf_counter()
        rounds = method.search(decoder, cuts[index], n_remove)
        counts.append(
            {
                "seconds": time.perf_counter() - started,
                "layer_runs": sum(r.layer_runs for r in rounds),
                "layer_runs_unshared": sum(r.naive_layer_runs for r in rounds),
            }
        )
        return [r.layer for r in rounds], [r.loss for r in rounds]

    model(cuts[0], labels=cuts[0], use_cache=False)  # warm up
    outcome.again = lambda: ours(0)
    outcome.races = contest(
        options.repeats,
        {"ours": ours, "theirs": lambda i: published.greedy(model, cuts[i], n_remove)},
        same,
    )
    outcome.facts["sharing"] = counts[0]
    return outcome
