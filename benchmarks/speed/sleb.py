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
from streamline.engine.budget import layers_to_remove, mean_layer_parameters
from streamline.engine.decoder import Decoder

__all__ = ["SAMPLES", "SPARSITY", "run", "same"]

SAMPLES = {"quick": (1, 64), "default": (1, 64), "full": (10, 128)}
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
    repeats = options.few_repeats
    cuts = samples(tokenizer, n * repeats, length).split(n)
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
                "head_runs_unshared": sum(
                    r.naive_layer_runs / (decoder.n_layers - gone)
                    for gone, r in enumerate(rounds, 1)
                ),
            }
        )
        return [r.unit for r in rounds], [r.loss for r in rounds]

    model(cuts[0], labels=cuts[0], use_cache=False)  # warm up
    outcome.again = lambda: ours(0)
    outcome.races = contest(
        repeats,
        {"ours": ours, "theirs": lambda i: published.greedy(model, cuts[i], n_remove)},
        same,
    )
    outcome.facts |= {"sharing": counts[0], **_bound(decoder, counts[0])}
    outcome.notes.append(
        "The head is as large as {head_in_layers:.1f} layers, so sharing layers alone could reach "
        "{ratio_of_sharing_layers:.2f} in multiplications; the rest comes from weights laid out "
        "once and from running the whole head only for trials that a part of it does not rule "
        "out.".format(**outcome.facts)
    )
    return outcome


def _bound(decoder: Decoder, counts: dict[str, float]) -> dict[str, float]:
    """The head in units of layers, and the ratio that shared layers with whole heads would give."""
    head = decoder.model.get_output_embeddings().weight.numel()
    in_layers = head / mean_layer_parameters(decoder)
    heads = counts["head_runs_unshared"] * in_layers
    ratio = (counts["layer_runs_unshared"] + heads) / (counts["layer_runs"] + heads)
    return {"head_in_layers": in_layers, "ratio_of_sharing_layers": ratio}
