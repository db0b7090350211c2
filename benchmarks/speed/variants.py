"""Row: the commonsense tasks on the dense model and twelve depth variants, evaluated jointly."""

from __future__ import annotations

from typing import Any

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import Options, Outcome
from streamline.benchmarks.speed.scoring import race_scoring
from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.methods.llm_streamline import (
    StreamlineFFN,
    StreamlineLayer,
    StreamlineNone,
    StreamlineSwiGLU,
)

__all__ = ["METHODS", "QUESTIONS", "SPARSITIES", "run", "variants"]

QUESTIONS = {"quick": 1, "default": 9, "full": 100}
"""Questions of each task, over all repetitions, for all thirteen models."""
SPARSITIES = (0.1, 0.15, 0.25)
METHODS = (StreamlineNone, StreamlineFFN, StreamlineSwiGLU, StreamlineLayer)


def variants(decoder: Decoder, tokenizer: Any, sparsities: tuple[float, ...]) -> list[Path]:
    """The dense path and four kinds at some sparsities, their replacements untrained."""
    batches = common.samples(tokenizer, 2, 512)
    calibration = measure(decoder, batches)
    paths = [dense_path(decoder)]
    for sparsity in sparsities:
        for method in METHODS:
            pruned = method().prune(decoder, calibration, sparsity, batches, seed=0)
            for module in pruned.modules.values():
                module.eval().requires_grad_(False)
            paths.append(pruned.path(decoder, f"{method.name}-{sparsity}"))
    return paths


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = common.loaded(options.model)
    outcome = Outcome(
        name="variants",
        work="six commonsense tasks, dense and 12 depth variants (four kinds, three sparsities)",
        against="a loop of lm-eval hf over the 13 models",
        target=4.5,
        notes=["Replacements are untrained: their weights do not change the work."],
    )
    paths = variants(Decoder(model), tokenizer, SPARSITIES)
    return race_scoring(options, outcome, paths, ["commonsense"], QUESTIONS)
