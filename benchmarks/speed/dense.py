"""Row: six commonsense tasks on the dense model, against lm-eval's ``hf``."""

from __future__ import annotations

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import Options, Outcome
from streamline.benchmarks.speed.scoring import race_scoring
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path

__all__ = ["QUESTIONS", "run"]

QUESTIONS = {"quick": 9, "default": 30, "full": 100}
"""Questions of each task, over all repetitions."""


def run(options: Options) -> Outcome:
    """Time the row."""
    outcome = Outcome(
        name="dense",
        work="six commonsense tasks, dense",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=2.5,
    )
    path = dense_path(Decoder(common.loaded(options.model)[0]))
    return race_scoring(options, outcome, [path], ["commonsense"], QUESTIONS)
