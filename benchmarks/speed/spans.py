"""Row: span scores for five sparsities and three criteria, against the published procedure.

The peer is written anew from the descriptions: the whole model is called and keeps the hidden
states of all layers, similarities are whole token-by-token matrices, every block size is a run of
its own.

Reference:
    LLM-Streamline, arXiv:2403.19135 (released ``get_cosine``); ShortGPT, arXiv:2403.03853;
    "The unreasonable ineffectiveness of the deeper layers", arXiv:2403.17887.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    require_close,
    require_equal,
)
from streamline.calibration import measure
from streamline.engine.budget import layers_to_remove
from streamline.engine.decoder import Decoder

__all__ = ["SAMPLES", "SPARSITIES", "ours", "run", "same", "theirs"]

SAMPLES = {"quick": (1, 512), "default": (1, 2048), "full": (8, 2048)}
"""Samples of each repetition, and their tokens."""
SPARSITIES = (0.1, 0.15, 0.2, 0.25, 0.3)
TOLERANCE = 1e-4

Scores = dict[str, dict[int, list[float]]]
"""By criterion and number of layers: a score for each start."""


def ours(decoder: Decoder, tokens: Tensor, lengths: Sequence[int]) -> Scores:
    """Everything from one pass."""
    found = measure(decoder, tokens)
    return {
        "cosine": {n: [0.5 + 0.5 * c for c in found.cosine.diagonal(n).tolist()] for n in lengths},
        "angular": {n: found.angle.diagonal(n).tolist() for n in lengths},
        "influence": {1: found.influence.tolist()},
    }


def theirs(model: Any, tokens: Tensor, lengths: Sequence[int]) -> Scores:
    """A run for each criterion and length; block influence ranks all layers in a single one."""
    return {
        "cosine": {n: _mean(model, tokens, _cosine, n) for n in lengths},
        "angular": {n: _mean(model, tokens, _angle, n) for n in lengths},
        "influence": {1: _mean(model, tokens, _influence, 1)},
    }


@torch.no_grad()
def _mean(
    model: Any, samples: Tensor, score: Callable[[Tensor, Tensor], Tensor], length: int
) -> list[float]:
    """A criterion for each run of ``length`` layers, averaged over samples."""
    rows = []
    for tokens in samples:
        # As released: the whole model, head included, and all its L + 1 states of [T, D].
        out = model(tokens[None], output_hidden_states=True, use_cache=False)
        states = [state[0] for state in out.hidden_states]
        pairs = zip(states, states[length:], strict=False)
        rows.append(torch.stack([score(before, after) for before, after in pairs]))
    return torch.stack(rows).mean(0).tolist()


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Mean over tokens of ``0.5 + 0.5 cos``, the trace of the whole similarity matrix."""
    similarity = 0.5 + 0.5 * (normalize(before, dim=-1) @ normalize(after, dim=-1).T)  # [T, T]
    return similarity.trace() / len(before)


def _angle(before: Tensor, after: Tensor) -> Tensor:
    """Angle over pi at the last token."""
    last = normalize(before[-1].double(), dim=-1) @ normalize(after[-1].double(), dim=-1)
    return last.clamp(-1, 1).arccos() / torch.pi


def _influence(before: Tensor, after: Tensor) -> Tensor:
    """``1 - cos``, mean over tokens."""
    return 1 - (normalize(before, dim=-1) * normalize(after, dim=-1)).sum(-1).mean()


def picks(found: Scores) -> dict[str, Any]:
    """The spans and layers that the scores choose: per length a start, or the lowest layers."""
    (influence,) = found["influence"].values()
    order = sorted(range(len(influence)), key=lambda i: (influence[i], i))
    return {
        "cosine": {n: s.index(max(s)) for n, s in found["cosine"].items()},
        "angular": {n: s.index(min(s)) for n, s in found["angular"].items()},
        "influence": {n: sorted(order[:n]) for n in found["cosine"]},
    }


def same(mine: Scores, other: Scores) -> dict[str, Any]:
    """Compare the scores, and which spans they choose.

    Raises:
        Disagreement: If a choice differs, or a score that does not touch the last depth: there the
            published procedure compares with the state after the final norm.
    """
    worst = 0.0
    for criterion, lengths in other.items():
        for n, scores in lengths.items():
            what = f"{criterion} scores of {n} layers"
            gap = require_close(what, mine[criterion][n][:-1], scores[:-1], TOLERANCE)
            worst = max(worst, gap)
    chosen = picks(mine)
    require_equal("chosen spans", chosen, picks(other))
    return {"max_difference": worst, "picks": chosen}


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = common.loaded(options.model)
    decoder = Decoder(model)
    n, length = SAMPLES[options.size]
    lengths = [layers_to_remove(decoder, sparsity) for sparsity in SPARSITIES]
    cuts = common.samples(tokenizer, n * options.few_repeats, length).split(n)
    outcome = Outcome(
        name="spans",
        work=f"span scores for five sparsities and three criteria, {n} x {length} tokens",
        against="the published procedure as released: all hidden states, whole similarity matrix, "
        "one run per sparsity",
        target=10.0,
        notes=[
            "The published side makes 11 runs: cosine and angular distance five each, block "
            "influence one, since its ranking serves every sparsity.",
            "Scores that end at the last depth are not compared: the published procedure takes the "
            "state after the final norm there. The choices are compared over all spans.",
        ],
    )
    ours(decoder, cuts[0][:1, :64], lengths)  # warm up
    theirs(model, cuts[0][:1, :64], lengths[:1])
    outcome.races = contest(
        len(cuts),
        lambda i: ours(decoder, cuts[i], lengths),
        lambda i: theirs(model, cuts[i], lengths),
        same,
    )
    return outcome
