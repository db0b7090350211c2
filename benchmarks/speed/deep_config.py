"""Row: the same loop on a 32-layer model of the same width, spans inside its layers 20 to 30."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from streamline.benchmarks.speed.common import Options, Outcome, counted, loaded
from streamline.benchmarks.speed.questions import slices, task_parts
from streamline.benchmarks.speed.scoring_row import (
    KINDS,
    quick_batch,
    race_scoring,
    replaced,
    subset,
)
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.plan import Span

__all__ = ["QUESTIONS", "SPANS", "deep_model", "run"]

QUESTIONS = {"quick": 1, "default": 6, "full": 100}
"""Questions of each task, over all repetitions, for all thirteen models."""
SPANS = (Span(24, 27), Span(22, 28), Span(21, 30))
"""About 8, 16 and 24 % of the parameters."""


@lru_cache(maxsize=1)
def deep_model(name: str, n_layers: int = 32) -> Any:
    """A model of random weights with the config of a named one but its number of layers."""
    from transformers import AutoModelForCausalLM

    config = type(loaded(name)[0].config)(**loaded(name)[0].config.to_diff_dict())
    config.num_hidden_layers = n_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def run(options: Options) -> Outcome:
    """Time the row."""
    _, tokenizer = loaded(options.model)
    model = deep_model(options.model)
    decoder = Decoder(model)
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    asked = n_each * options.repeats
    parts = task_parts(["commonsense"], tokenizer, model, asked)
    paths = [dense_path(decoder)]
    paths += [replaced(decoder, span, kind) for span in SPANS for kind in KINDS]
    outcome = Outcome(
        name="deep_config",
        work=f"the same tasks, 32-layer Llama config of the same width, random weights, dense + 12 "
        f"variants with spans {', '.join(f'[{s.start}, {s.stop})' for s in SPANS)}, "
        f"{counted(asked, 'question')} of each task for all 13 models",
        against="a loop of lm-eval hf over the 13 models",
        target=7.0,
    )
    outcome.notes += subset(asked, QUESTIONS["full"])
    return race_scoring(
        outcome,
        paths,
        tokenizer,
        slices(parts, n_each, options.repeats),
        half="ours",
        batch_size=quick_batch(options, 8),
    )
