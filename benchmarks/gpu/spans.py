"""Row: span scores for five sparsities and three criteria, against the published procedure."""

from __future__ import annotations

from typing import Any

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed import spans
from streamline.benchmarks.speed.common import Outcome, require_close

__all__ = ["run"]

_EXACT = 1e-4
_ROUNDED = 0.02
"""bfloat16: the peer's similarity matrix has about three digits."""


def run(bench: Bench) -> Outcome:
    """Time the row."""
    n, length = bench.sizes.span_tokens
    tokens = bench.inputs.tokens(n, length)
    there = tokens.to(bench.device)
    lengths = [max(1, round(sparsity * bench.decoder.n_layers)) for sparsity in spans.SPARSITIES]
    outcome = Outcome(
        name="spans",
        work=f"span scores for five sparsities and three criteria, {n} x {length} tokens",
        against="the published procedure: all hidden states, whole similarity matrix, one run per "
        "sparsity and criterion",
        target=10.0,
        notes=[
            "Scores that end at the last depth are not compared: the published procedure takes the "
            "state after the final norm there."
        ],
    )

    def same(mine: spans.Scores, other: spans.Scores) -> dict[str, Any]:
        tolerance = _EXACT if bench.exact else _ROUNDED
        worst = max(
            require_close(
                f"{name} scores of {k} layers", mine[name][k][:-1], scores[:-1], tolerance
            )
            for name, found in other.items()
            for k, scores in found.items()
        )
        return {"max_difference": worst}

    spans.ours(bench.decoder, tokens[:1, :64], lengths)  # warm up
    spans.theirs(bench.model, there[:1, :64], lengths[:1])
    return bench.race(
        outcome,
        1,
        lambda: spans.ours(bench.decoder, tokens, lengths),
        lambda: spans.theirs(bench.model, there, lengths),
        same,
    )
