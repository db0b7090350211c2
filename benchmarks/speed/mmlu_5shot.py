"""Row: 5-shot MMLU, one subject; the examples are a prefix of every question."""

from __future__ import annotations

from streamline.benchmarks.speed import questions
from streamline.benchmarks.speed.common import Options, Outcome, loaded
from streamline.benchmarks.speed.scoring_row import quick_batch, race_scoring
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path

__all__ = ["QUESTIONS", "SUBJECT", "run"]

QUESTIONS = {"quick": 24, "default": 48, "full": 100}
SUBJECT = "abstract_algebra"  # the first by name; it has exactly 100 questions


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    asked = questions.mmlu(SUBJECT, QUESTIONS[options.size])
    n_each = len(asked) // options.repeats
    rest = len(asked) - n_each * options.repeats
    bounds = [i * n_each + min(i, rest) for i in range(options.repeats + 1)]
    cuts = [
        questions.written(f"mmlu_{SUBJECT}", asked[start:stop], tokenizer)
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    outcome = Outcome(
        name="mmlu_5shot",
        work=f"5-shot MMLU, {SUBJECT}, {len(asked)} questions",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=6.0,
    )
    outcome.notes.append(
        "lm-eval's cache is on, as by default: it runs a question's prompt once for its four "
        "one-token options. What is shared here beyond that is the five examples."
    )
    return race_scoring(
        outcome,
        [dense_path(Decoder(model))],
        tokenizer,
        cuts,
        half="ours",
        batch_size=quick_batch(options, 16),
    )
