"""Questions and texts of a streamed model's paths, in one pass over its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamline.engine.forward import Progress
from streamline.engine.paths import Path
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.score import Answers
from streamline.evaluation.scoring.together import answer_all
from streamline.evaluation.scoring.token_budget import TokenBudget

__all__ = ["evaluate_streamed"]


def evaluate_streamed(
    paths: Sequence[Path],
    requests: Sequence[Request],
    texts: Sequence[Tensor] = (),
    *,
    batch_tokens: int | TokenBudget | None = None,
    progress: Progress | None = None,
) -> tuple[list[Answers], list[NDArray[np.float64]]]:
    """Answers of each path, and for each text the summed NLL of each path, [paths]."""
    answers: list[Answers] = []
    nlls: list[NDArray[np.float64]] = []
    for number, found in answer_all(
        paths, [requests], texts, batch_tokens=batch_tokens, progress=progress
    ):
        if number == 0:
            answers = found
        else:
            nlls.append(np.array([result.nll for result in found]))
    return answers, nlls
