"""Row: the embedded benchmark by the runner, and the same cells one model after another.

The peer works as a loop over the usual tools does: for each method and sparsity it calibrates,
prunes, trains the replacement beside a teacher of its own, puts the model together, has lm-eval's
``hf`` model answer the questions, and runs the plain model on the held-out text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from streamline.benchmarks.slicegpt_peer import perplexity
from streamline.benchmarks.speed import common, questions
from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    require_close,
    require_equal,
)
from streamline.benchmarks.speed.lm_eval_peer import LmEval, best_batch_size
from streamline.benchmarks.speed.questions import Questions
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path as LayerPath
from streamline.errors import StreamlineError
from streamline.evaluation.questions import heldout_text
from streamline.registry import build_method
from streamline.run import pipeline
from streamline.run.cell import Cell, expand
from streamline.run.config import RunConfig, build_config
from streamline.run.deciding.decide import decided
from streamline.sources.batches import TokenBatches
from streamline.training.fit import fit

__all__ = ["FRACTIONS", "one_by_one", "run", "same", "settings", "side_by_side"]

FRACTIONS = {"quick": 0.02, "default": 0.1, "full": 1.0}
"""Fraction of the suite's questions and tokens."""
TOLERANCE = 1e-3
"""Largest relative difference of a perplexity."""

Found = dict[str, tuple[dict[str, float], float]]
"""By cell: the accuracy of each task, and the perplexity of the held-out text."""


def settings(options: Options, out: Path) -> RunConfig:
    """The suite ``embedded`` with a fraction of its questions and tokens."""
    whole = decided(build_config({"models": options.model, "out": out}, suite="embedded")).config

    def some(stage: Any, *fields: str, least: int | None = None) -> Any:
        def less(field: str) -> int:
            return max(
                least or stage.length, round(FRACTIONS[options.size] * getattr(stage, field))
            )

        return stage.model_copy(update={field: less(field) for field in fields})

    return some(whole, "limit", least=1).model_copy(
        update={
            "calibration": some(whole.calibration, "n_samples", least=2),
            "training": some(whole.training, "n_tokens", "validation_tokens"),
            "perplexity": some(whole.perplexity, "n_tokens"),
        }
    )


def side_by_side(config: RunConfig) -> Found:
    """The run, into a folder that holds nothing yet.

    Raises:
        StreamlineError: If a cell is not measured.
    """
    found = {}
    for record in pipeline.run(config):
        label = Cell(record.model, record.method, record.sparsity, record.seed).label
        if record.status != "ok":
            raise StreamlineError(f"{label}: {record.status}: {record.reason}")
        (value,) = record.summary.perplexity.values()
        found[label] = {task: result.value for task, result in record.tasks.items()}, value
    return found


def one_by_one(
    config: RunConfig, model: Any, tokenizer: Any, asked: Questions, batch_size: int
) -> Found:
    """The same cells, each for itself."""
    decoder = Decoder(model)
    batches, text = TokenBatches(tokenizer), config.perplexity
    heldout = heldout_text(batches, text.texts, text.n_tokens, text.length)
    assert heldout is not None
    found = {}
    for cell in expand(config, config.models[0]):
        whole = model if cell.is_dense else assemble(_made(cell, decoder, config, batches))
        (answers,) = LmEval([whole], tokenizer, batch_size).answer(asked)
        values = {task: sum(right) / len(right) for task, right in asked.grade(answers).items()}
        found[cell.label] = values, perplexity(whole, heldout.windows)
    return found


def _made(cell: Cell, decoder: Decoder, config: RunConfig, tokens: TokenBatches) -> LayerPath:
    """One cell's path, its replacements trained by themselves."""
    method, wanted, recipe = build_method(cell.method), config.calibration, config.training
    batches = tokens.tokens(
        wanted.texts, n_samples=wanted.n_samples, length=wanted.length, seed=cell.seed
    )
    calibration = method.calibrate(decoder, batches)
    pruned = method.prune(decoder, calibration, cell.sparsity, batches, cell.seed)
    train, validation = tokens.training(
        recipe.texts or wanted.texts,
        n_tokens=recipe.n_tokens,
        validation_tokens=recipe.validation_tokens,
        length=recipe.length,
        seed=cell.seed,
    )
    for student in pruned.students:
        student.apply(recipe)
        fit(decoder, [student], train, validation, seed=cell.seed)
    return pruned.path(decoder)


def same(mine: Found, other: Found) -> dict[str, Any]:
    """Compare every accuracy and perplexity of every cell."""
    require_equal("cells", list(mine), list(other))
    for label, (accuracies, _) in mine.items():
        require_equal(f"accuracies of {label}", accuracies, other[label][0])
    sides = [[value for _, value in found.values()] for found in (mine, other)]
    worst = require_close("perplexities", *sides, tolerance=TOLERANCE, relative=True)
    return {"cells": len(mine), "max_relative_difference": worst}


def run(options: Options) -> Outcome:
    """Time the row; once, for it is long."""
    model, tokenizer = common.loaded(options.model)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(options, Path(folder) / "run")
        n_questions = config.limit or 0
        parts = questions.task_parts(
            config.tasks,
            tokenizer,
            model,
            n_questions,
            source=config.data,
            data_dir=config.data_dir,
        )
        (asked,) = questions.slices(parts, n_questions, 1)
        size = best_batch_size(model, tokenizer, asked)
        n_cells = len(expand(config, config.models[0]))
        outcome = Outcome(
            name="embedded",
            work=f"`make bench` with {FRACTIONS[options.size]:.0%} of its questions and tokens: "
            f"{n_cells} cells, {n_questions} questions of each task",
            against="one cell after another: calibration, training, lm-eval hf, perplexity",
            facts={"batch_size": size},
            notes=[
                "The peer is spared reading the model and preparing the questions; the runner's "
                "time has both, and its records, figures and report.",
                "Accuracies of all cells are the same, trained ones included.",
            ],
        )
        outcome.races = contest(
            1,
            lambda i: side_by_side(config),
            lambda i: one_by_one(config, model, tokenizer, asked, size),
            same,
        )
    return outcome
