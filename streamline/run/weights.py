"""How long the stages of a model's run take compared with each other, for the time left.

A unit is a token read by the dense model. These are estimates: what methods search, and how many
layers variants share, only the run shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamline.evaluation.questions import Questions
from streamline.run.cell import CellJob
from streamline.run.config import RunConfig

__all__ = ["stage_weights"]

_STUDENT = 0.1  # of a token's cost that training a replacement adds to the teacher's
_SHARED = 0.6  # of a variant's layers that are run for it alone
_TRAINED = 3.0  # forward and backward, compared with forward


def stage_weights(
    config: RunConfig, shared: Sequence[CellJob], own: Sequence[CellJob], questions: Questions
) -> tuple[float, float, float, float]:
    """Weights of pruning, training, joint evaluation, and everything cell by cell.

    Args:
        config: The run, as the model has it.
        shared: Cells that share the dense model's layers.
        own: Cells that are models of their own.
        questions: The questions and texts.
    """
    calibration = config.calibration.n_samples * config.calibration.length
    read = sum(questions.tokens)
    tuned = [job for job in shared if job.cell.recovery != "none"]
    passes = {(j.cell.seed, j.target.method.calibration_key()) for j in shared if j.cell.sparsity}
    n_students = sum(job.target.method.trains for job in shared)
    training = config.training.seen_tokens * (1 + _STUDENT * n_students) if n_students else 0.0
    tuning = _TRAINED * (config.lora.n_tokens or config.training.seen_tokens)
    n_tuned = sum(job.cell.recovery != "none" for job in (*shared, *own))
    return (
        float(calibration * len(passes)),
        training,
        _SHARED * read * (len(shared) - len(tuned)),
        float(read + calibration) * len(own) + read * len(tuned) + tuning * n_tuned,
    )
