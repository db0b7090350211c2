"""Row: 5-shot MMLU, one subject; the examples are a prefix of every question."""

from __future__ import annotations

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import Options, Outcome
from streamline.benchmarks.speed.scoring import race_scoring
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path

__all__ = ["QUESTIONS", "run"]

QUESTIONS = {"quick": 12, "default": 48, "full": 99}
SUBJECT = "abstract_algebra"  # the first by name; it has exactly 100 questions


def run(options: Options) -> Outcome:
    """Time the row."""
    outcome = Outcome(
        name="mmlu",
        work=f"5-shot MMLU, {SUBJECT}",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=6.0,
        notes=[
            "lm-eval's cache is on, as by default: it runs a question's prompt once for its four "
            "one-token options. What is shared here beyond that is the five examples."
        ],
    )
    path = dense_path(Decoder(common.loaded(options.model)[0]))
    return race_scoring(options, outcome, [path], [f"mmlu_{SUBJECT}"], QUESTIONS, shots=5)
