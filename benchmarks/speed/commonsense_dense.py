"""Row: six commonsense tasks on the dense model, against lm-eval's ``hf``; bfloat16 beside."""

from __future__ import annotations

import math

from streamline.benchmarks.speed.common import Options, Outcome, counted, loaded
from streamline.benchmarks.speed.questions import slices, task_parts
from streamline.benchmarks.speed.scoring_row import quick_batch, race_scoring, subset
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path

__all__ = ["HALF_TARGET", "QUESTIONS", "run"]

QUESTIONS = {"quick": 9, "default": 30, "full": 100}
"""Questions of each task, over all repetitions."""
HALF_TARGET = 3.5
"""Ratio asked of our scorer in bfloat16 against lm-eval in float32."""


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    asked = n_each * options.repeats
    parts = task_parts(["commonsense"], tokenizer, model, asked)
    outcome = Outcome(
        name="commonsense_dense",
        work=f"six commonsense tasks, dense, {counted(asked, 'question')} each",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=2.5,
    )
    outcome.notes += subset(asked, QUESTIONS["full"])
    paths, cuts = [dense_path(Decoder(model))], slices(parts, n_each, options.repeats)
    race_scoring(outcome, paths, tokenizer, cuts, half="both", batch_size=quick_batch(options, 8))
    outcome.facts["bf16"]["target"] = HALF_TARGET
    return outcome
