"""Row: the commonsense tasks on the dense model and twelve depth variants, in one walk."""

from __future__ import annotations

import math

from streamline.benchmarks.speed.common import Options, Outcome, counted, loaded
from streamline.benchmarks.speed.questions import slices, task_parts
from streamline.benchmarks.speed.scoring_row import (
    METHODS,
    frozen,
    quick_batch,
    race_scoring,
    subset,
)
from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.sources.batches import token_batches
from streamline.sources.texts import load_texts

__all__ = ["QUESTIONS", "SPARSITIES", "run", "variants"]

QUESTIONS = {"quick": 1, "default": 9, "full": 100}
"""Questions of each task, over all repetitions, for all thirteen models."""
SPARSITIES = (0.1, 0.15, 0.25)


def variants(decoder: Decoder, tokenizer: object, sparsities: tuple[float, ...]) -> list[Path]:
    """The dense path and four kinds at some sparsities, spans chosen by a short calibration."""
    texts = [document.text for document in load_texts("packaged", seed=0, n_documents=40)]
    batches = token_batches(texts, tokenizer, n_samples=2, length=512, seed=0)
    calibration = measure(decoder, batches)
    paths = [dense_path(decoder)]
    for sparsity in sparsities:
        for method in METHODS:
            pruned = method().prune(decoder, calibration, sparsity, batches, seed=0)
            paths.append(frozen(pruned).path(decoder, f"{method.name}-{sparsity}"))
    return paths


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    parts = task_parts(["commonsense"], tokenizer, model, n_each * options.repeats)
    paths = variants(Decoder(model), tokenizer, SPARSITIES)
    asked = n_each * options.repeats
    outcome = Outcome(
        name="commonsense_variants",
        work=f"the same, dense + 12 depth variants (four kinds, three sparsities), "
        f"{counted(asked, 'question')} of each task for all 13 models",
        against="a loop of lm-eval hf over the 13 models",
        target=4.5,
    )
    outcome.notes += subset(asked, QUESTIONS["full"])
    outcome.notes.append("Replacements are untrained: their weights do not change the work.")
    return race_scoring(
        outcome,
        paths,
        tokenizer,
        slices(parts, n_each, options.repeats),
        half="ours",
        batch_size=quick_batch(options, 8),
    )
