"""Row: SLEB's greedy search to 25 %, against the naive loop of whole models.

Reference:
    SLEB, arXiv:2402.09025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamline.baselines.sleb import SLEB
from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    require_close,
    require_equal,
)
from streamline.engine.budget import layers_to_remove
from streamline.engine.decoder import Decoder

__all__ = ["SAMPLES", "SPARSITY", "greedy", "run", "same"]

SAMPLES = {"quick": (1, 64), "default": (1, 64), "full": (10, 128)}
"""Sequences of each repetition, and their tokens."""
SPARSITY = {"quick": 0.05, "default": 0.25, "full": 0.25}
TOLERANCE = 1e-4

Search = tuple[list[int], list[float]]
"""The layers in the order of their removal, and the loss without each."""


@torch.no_grad()
def greedy(model: Any, tokens: Tensor, n_remove: int) -> Search:
    """The greedy search as published, one whole model per trial; the first and last layers stay.

    Args:
        model: A model with its layers in ``model.model.layers``; restored afterwards.
        tokens: Token ids of every trial, [N, T].
        n_remove: Layers to remove.
    """
    body = model.model
    whole = body.layers
    alive = list(range(len(whole)))
    order: list[int] = []
    losses: list[float] = []
    try:
        for _ in range(n_remove):
            trials = {}
            for layer in alive[1:-1]:
                body.layers = nn.ModuleList([whole[i] for i in alive if i != layer])
                trials[layer] = float(model(tokens, labels=tokens, use_cache=False).loss)
            best = min(trials, key=trials.__getitem__)
            order.append(best)
            losses.append(trials[best])
            alive.remove(best)
    finally:
        body.layers = whole
    return order, losses


def same(ours: Search, theirs: Search) -> dict[str, Any]:
    """Compare picks and losses."""
    require_equal("layers in the order of their removal", ours[0], theirs[0])
    gap = require_close("losses", ours[1], theirs[1], TOLERANCE, relative=True)
    return {"max_relative_difference": gap, "order": ours[0]}


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = common.loaded(options.model)
    decoder, method = Decoder(model), SLEB(n_samples=None, length=None)
    n, length = SAMPLES[options.size]
    n_remove = layers_to_remove(decoder, SPARSITY[options.size])
    cuts = common.samples(tokenizer, n * options.few_repeats, length).split(n)
    outcome = Outcome(
        name="sleb",
        work=f"SLEB to {SPARSITY[options.size]:.0%} ({n_remove} of {decoder.n_layers} layers), "
        f"{n} x {length} tokens per trial",
        against="the naive greedy loop, every trial a whole model",
        target=1.8,
    )
    if options.size != "full":
        outcome.notes.append("--full takes the method's own 10 sequences of 128 tokens per trial.")

    def ours(index: int) -> Search:
        rounds = method.search(decoder, cuts[index], n_remove)
        return [r.unit for r in rounds], [r.loss for r in rounds]

    model(cuts[0], labels=cuts[0], use_cache=False)  # warm up
    outcome.races = contest(len(cuts), ours, lambda i: greedy(model, cuts[i], n_remove), same)
    return outcome
