"""Row: SLEB's greedy search, against the naive loop of whole models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from streamline.baselines.sleb import SLEB
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Disagreement, Outcome, require_close
from streamline.benchmarks.speed.sleb import Search, greedy

__all__ = ["run", "same", "search"]

_EXACT = 1e-4
_ROUNDED = 2e-3
"""Relative difference of a mean loss, by dtype."""


def search(bench: Bench, tokens: Tensor, n_remove: int) -> Search:
    """Our search: the layers in the order of their removal, and the loss without each."""
    rounds = SLEB(n_samples=None, length=None).search(bench.decoder, tokens, n_remove)
    return [each.unit for each in rounds], [each.loss for each in rounds]


def same(mine: Search, other: Search, *, exact: bool) -> dict[str, Any]:
    """Compare losses, as long as both sides removed the same layers.

    Two layers of a random model may cost the same up to rounding. Where the two sides choose
    differently, the losses of both choices must still be equal; what follows is another search.

    Raises:
        Disagreement: If losses differ, or in float32 a choice.
    """
    rounds = len(mine[0])
    agreed = next((i for i in range(rounds) if mine[0][i] != other[0][i]), rounds)
    if exact and agreed < rounds:
        raise Disagreement(
            f"round {agreed} removes layer {mine[0][agreed]} in our search and {other[0][agreed]} "
            "in the naive one; no time is reported"
        )
    compared = min(agreed + 1, rounds)
    gap = require_close(
        "losses",
        mine[1][:compared],
        other[1][:compared],
        _EXACT if exact else _ROUNDED,
        relative=True,
    )
    return {"max_relative_difference": gap, "rounds_alike": agreed, "rounds": rounds}


def run(bench: Bench) -> Outcome:
    """Time the row."""
    n, length = bench.sizes.trial_tokens
    n_remove = bench.sizes.removed
    tokens = bench.inputs.tokens(n, length)
    there = tokens.to(bench.device)
    outcome = Outcome(
        name="sleb",
        work=f"SLEB, {n_remove} of {bench.decoder.n_layers} layers, {n} x {length} tokens a trial",
        against="the naive greedy loop, every trial a whole model",
        target=6.0,
    )
    search(bench, tokens, 1)  # warm up
    bench.model(there, labels=there, use_cache=False)
    return bench.race(
        outcome,
        1,
        lambda: search(bench, tokens, n_remove),
        lambda: greedy(bench.model, there, n_remove),
        lambda mine, other: same(mine, other, exact=bench.exact),
    )
