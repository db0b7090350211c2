"""Row: span scores for five sparsities and three criteria, against the published procedure."""

from __future__ import annotations

from typing import Any

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed import spans
from streamline.benchmarks.speed.common import Outcome, require_close

__all__ = ["run"]

_EXACT = 1e-4
_ROUNDED = 0.02
"""bfloat16: states differ by rounding, as batches do."""


class _FloatStates:
    """A model whose hidden states are given in float32, in which the peer compares them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self._model(*args, **kwargs)
        out.hidden_states = tuple(state.float() for state in out.hidden_states)
        return out


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
    spans.theirs(_FloatStates(bench.model), there[:1, :64], lengths[:1])
    return bench.race(
        outcome,
        1,
        lambda: spans.ours(bench.decoder, tokens, lengths),
        lambda: spans.theirs(_FloatStates(bench.model), there, lengths),
        same,
    )
