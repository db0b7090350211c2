"""lm-eval's own ``hf`` model as the peer of the scoring rows, and the comparison of answers.

Example::

    size = best_batch_size(model, tokenizer, questions)
    peer = LmEval([model], tokenizer, size)
    same_answers(questions, ours, peer.answer(questions))  # raises Disagreement, or returns facts
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamline.benchmarks.speed.common import require_close, require_equal
from streamline.benchmarks.speed.questions import Questions, cut
from streamline.evaluation.scoring.score import Likelihoods

__all__ = ["BATCH_SIZES", "LARGE", "TOLERANCE", "LmEval", "best_batch_size", "same_answers"]

BATCH_SIZES = (8, 16, 32)
TOLERANCE = 1e-3
"""Largest allowed difference of a summed log-probability."""
LARGE = 200.0
"""Sums from which on the tolerance of a pruned model grows with the sum: 5e-6 of it."""
TRIAL_TOKENS = 2500
"""Distinct tokens that a batch size is tried on."""


class LmEval:
    """A loop of lm-eval's ``hf`` model over some models.

    Args:
        models: Whole models; put together beforehand, outside the timing.
        tokenizer: Their tokenizer.
        batch_size: Requests at once.
    """

    def __init__(self, models: Sequence[Any], tokenizer: Any, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._lms = [
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size) for model in models
        ]

    def answer(self, questions: Questions) -> list[Likelihoods]:
        """Every model's answers, one after the other."""
        counts = np.array([len(r.continuation) for r in questions.requests], dtype=np.int64)
        out = []
        for lm in self._lms:
            replies = lm.loglikelihood(list(questions.instances), disable_tqdm=True)
            sums, greedy = zip(*replies, strict=True)
            out.append(
                Likelihoods(np.array(sums, dtype=np.float64), np.array(greedy, bool), counts)
            )
        return out


def best_batch_size(
    model: Any, tokenizer: Any, questions: Questions, sizes: Sequence[int] = BATCH_SIZES
) -> int:
    """The batch size with which lm-eval is fastest, tried on some of the questions."""
    lengths = [len(inputs) for inputs in {request.inputs for request in questions.requests}]
    n_docs = min(part.n_docs for part in questions.parts)
    n_each = min(n_docs, max(1, -(-TRIAL_TOKENS * n_docs // sum(lengths))))
    sample = Questions(tuple(cut(part, 0, n_each) for part in questions.parts))
    LmEval([model], tokenizer, sizes[0]).answer(
        Questions((cut(questions.parts[0], 0, 2),))
    )  # warm up
    seconds = {}
    for size in sizes:
        peer = LmEval([model], tokenizer, size)
        started = time.perf_counter()
        peer.answer(sample)
        seconds[size] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__)


def same_answers(
    questions: Questions, ours: Sequence[Likelihoods], theirs: Sequence[Likelihoods]
) -> dict[str, Any]:
    """Compare answers of every model, question by question.

    Untrained replacements give sums of hundreds and thousands, of which float32 holds fewer
    decimals, so beyond `LARGE` the tolerance of all models but the first grows with the sum.

    Returns:
        The largest difference of a summed log-probability, the number of models, and for each task
        how many questions the first model answers rightly, of how many.

    Raises:
        Disagreement: If a sum differs by more than `TOLERANCE`, or a question is graded otherwise.
    """
    require_equal("numbers of models", len(ours), len(theirs))
    worst, first = 0.0, None
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        sums = other.loglikelihood
        scale = np.maximum(1.0, np.abs(sums) / LARGE) if index else np.ones(len(sums))
        require_close(
            f"summed log-probabilities of model {index}",
            (sums + (mine.loglikelihood - sums) / scale).tolist(),
            sums.tolist(),
            TOLERANCE,
        )
        worst = max(worst, float(np.abs(mine.loglikelihood - sums).max()))
        grades = questions.grade(mine)
        for task, right in questions.grade(other).items():
            require_equal(f"grades of model {index} on {task}", grades[task], right)
        first = first or {task: [sum(right), len(right)] for task, right in grades.items()}
    return {"max_difference": worst, "n_models": len(ours), "right": first}
