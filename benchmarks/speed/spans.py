"""Row: span scores for five sparsities and three criteria, against the published procedure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from streamline.benchmarks.speed import published
from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    loaded,
    peaks,
    require_close,
    require_equal,
)
from streamline.calibration import measure
from streamline.engine.budget import layers_to_remove
from streamline.engine.decoder import Decoder
from streamline.sources.batches import token_batches
from streamline.sources.texts import load_texts

__all__ = [
    "SAMPLES",
    "SPARSITIES",
    "measure_ours",
    "measure_theirs",
    "ours",
    "run",
    "same",
    "theirs",
]

SAMPLES = {"quick": (1, 512), "default": (1, 2048), "full": (8, 2048)}
"""Samples of each repetition, and their tokens."""
MEMORY_SAMPLES = (16, 32)
MEMORY_LENGTH = 512  # so that both numbers are several batches
SPARSITIES = (0.1, 0.15, 0.2, 0.25, 0.3)
TOLERANCE = 1e-4


def samples(tokenizer: Any, n: int, length: int) -> Tensor:
    """Token batches of the packaged text."""
    texts = [document.text for document in load_texts("packaged", seed=0, n_documents=60)]
    return token_batches(texts, tokenizer, n_samples=n, length=length, seed=0)


def ours(decoder: Decoder, tokens: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """Everything from one pass."""
    found = measure(decoder, tokens)
    influence = found.influence.tolist()
    return {
        "cosine": {n: [0.5 + 0.5 * c for c in found.cosine.diagonal(n).tolist()] for n in lengths},
        "angular": {n: found.angle.diagonal(n).tolist() for n in lengths},
        "influence": influence,
    }


def theirs(model: Any, tokens: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """One run per criterion and sparsity; block influence ranks all layers in a single one."""
    started = time.perf_counter()
    cosine = {n: published.cosine_scores(model, tokens, n) for n in lengths}
    cosine_s = time.perf_counter() - started
    angular = {n: published.angular_scores(model, tokens, n) for n in lengths}
    influence = published.block_influence(model, tokens)
    return {"cosine": cosine, "angular": angular, "influence": influence, "cosine_s": cosine_s}


def picks(found: dict[str, Any]) -> dict[str, Any]:
    """The spans and layers that the scores choose: per length a start, or the lowest layers."""
    influence = found["influence"]
    order = sorted(range(len(influence)), key=lambda i: (influence[i], i))
    return {
        "cosine": {n: s.index(max(s)) for n, s in found["cosine"].items()},
        "angular": {n: s.index(min(s)) for n, s in found["angular"].items()},
        "influence": {n: sorted(order[:n]) for n in found["cosine"]},
    }


def same(results: dict[str, Any]) -> dict[str, Any]:
    """Compare the scores, and which spans they choose.

    Raises:
        Disagreement: If a choice differs, or a score that does not touch the last depth: there the
            published procedure compares with the state after the final norm.
    """
    mine, other = results["ours"], results["theirs"]
    worst = 0.0
    for criterion in ("cosine", "angular"):
        for n, scores in other[criterion].items():
            gap = require_close(
                f"{criterion} scores of {n} layers",
                mine[criterion][n][:-1], scores[:-1], TOLERANCE,
            )  # fmt: skip
            worst = max(worst, gap)
    gap = require_close("influences", mine["influence"][:-1], other["influence"][:-1], TOLERANCE)
    chosen = picks(mine)
    require_equal("chosen spans", chosen, picks(other))
    return {"max_difference": max(worst, gap), "picks": chosen, "cosine_s": other.get("cosine_s")}


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    decoder = Decoder(model)
    n, length = SAMPLES[options.size]
    repeats = options.few_repeats
    batches = samples(tokenizer, n * repeats, length)
    lengths = [layers_to_remove(decoder, sparsity) for sparsity in SPARSITIES]
    cuts = batches.split(n)
    outcome = Outcome(
        name="spans",
        work=f"span scores for five sparsities and three criteria, {n} sample(s) of {length} "
        "tokens each repetition",
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
    published.block_influence(model, cuts[0][:1, :64])
    outcome.again = lambda: ours(decoder, cuts[0], lengths)
    outcome.races = contest(
        repeats,
        {
            "ours": lambda i: ours(decoder, cuts[i], lengths),
            "theirs": lambda i: theirs(model, cuts[i], lengths),
        },
        same,
    )
    only = sorted(race.facts["cosine_s"] / race.wall_s["ours"] for race in outcome.races)
    outcome.facts["ratio_against_cosine_runs_alone"] = only[len(only) // 2]
    outcome.facts["layers"] = lengths
    if options.memory:
        outcome.memory = peaks("spans", options.model, MEMORY_SAMPLES, min(length, MEMORY_LENGTH))
    return outcome


def measure_ours(ready: Callable[[], None], name: str, n: int, length: int) -> None:
    """Our pass, for its peak memory."""
    decoder, tokens, lengths = _prepared(name, n, length)
    ready()
    ours(decoder, tokens, lengths)


def measure_theirs(ready: Callable[[], None], name: str, n: int, length: int) -> None:
    """One published run, for its peak memory."""
    decoder, tokens, lengths = _prepared(name, n, length)
    ready()
    published.cosine_scores(decoder.model, tokens, lengths[0])


def _prepared(name: str, n: int, length: int) -> tuple[Decoder, Tensor, list[int]]:
    model, tokenizer = loaded(name)
    decoder = Decoder(model)
    lengths = [layers_to_remove(decoder, sparsity) for sparsity in SPARSITIES]
    tokens = samples(tokenizer, max(MEMORY_SAMPLES), length)[:n]
    return decoder, tokens, lengths
