"""lm-eval's own ``hf`` model as the peer of the scoring rows, and the comparison of answers.

Example::

    size, costs = best_batch_size(model, tokenizer, questions)
    peer = LmEval([model], tokenizer, size)
    (answers,) = peer.answer(questions)
    same_answers(questions, ours, [answers])        # raises Disagreement, or returns facts
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamline.benchmarks.speed.common import require_close, require_equal
from streamline.benchmarks.speed.questions import Questions, encode
from streamline.engine.paths import Path
from streamline.evaluation.scoring.score import Answers, score

__all__ = [
    "BATCH_SIZES",
    "LARGE",
    "TOLERANCE",
    "LmEval",
    "answer",
    "best_batch_size",
    "same_answers",
]

BATCH_SIZES = (8, 16, 32)
TOLERANCE = 1e-3
"""Largest allowed difference of a summed log-probability."""
LARGE = 200.0
"""Sums from which on the tolerance of a pruned model grows with the sum: 5e-6 of it."""
_TRIAL_TOKENS = 2500  # of distinct inputs that a batch size is tried on, at least one batch


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

    def answer(self, questions: Questions) -> list[Answers]:
        """Every model's answers, one after the other."""
        counts = np.array([len(r.continuation) for r in questions.requests], dtype=np.int64)
        out = []
        for lm in self._lms:
            replies = lm.loglikelihood(list(questions.instances), disable_tqdm=True)
            sums, greedy = zip(*replies, strict=True)
            out.append(Answers(np.array(sums, dtype=np.float64), np.array(greedy, bool), counts))
        return out


def answer(paths: Sequence[Path], questions: Questions, tokenizer: Any) -> list[Answers]:
    """Our answers: the requests are encoded, as the peer does in its own time, and scored."""
    pairs = encode(questions.instances, tokenizer)
    known = [(list(r.context), list(r.continuation)) for r in questions.requests]
    require_equal("token ids", [(list(a), list(b)) for a, b in pairs], known)
    return score(paths, questions.requests)


def best_batch_size(
    model: Any, tokenizer: Any, questions: Questions, sizes: Sequence[int] = BATCH_SIZES
) -> tuple[int, dict[str, float]]:
    """The batch size with which lm-eval is fastest, on questions taken evenly from those asked.

    Each size is given whole batches, of about 2,500 tokens in all or more: long inputs are dear,
    and with them the batch size matters least.

    Returns:
        The size, and for each size the microseconds of an input token; a few requests are run
        beforehand to warm up.
    """
    warm = _sample(questions, 2)
    LmEval([model], tokenizer, sizes[0]).answer(warm)
    lengths = [len(inputs) for inputs in {request.inputs for request in questions.requests}]
    enough = _TRIAL_TOKENS * len(lengths) // sum(lengths)
    cost = {}
    for size in sizes:
        sample = _sample(questions, max(1, -(-enough // size)) * size)
        peer = LmEval([model], tokenizer, size)
        started = time.perf_counter()
        peer.answer(sample)
        seconds = time.perf_counter() - started
        distinct = {request.inputs for request in sample.requests}
        cost[str(size)] = 1e6 * seconds / sum(len(inputs) for inputs in distinct)
    return int(min(cost, key=cost.__getitem__)), cost


def _sample(questions: Questions, n: int) -> Questions:
    """Whole questions, evenly taken, of at least so many distinct inputs if there are as many."""
    by_doc: dict[tuple[str, int], list[int]] = {}
    for place, request in enumerate(questions.requests):
        by_doc.setdefault((request.task, request.doc_id), []).append(place)
    groups = list(by_doc.values())
    chosen: list[int] = []
    for count in range(1, len(groups) + 1):
        chosen = [p for k in range(count) for p in groups[k * len(groups) // count]]
        if len({questions.requests[place].inputs for place in chosen}) >= n:
            break
    return Questions(
        tuple(questions.instances[i] for i in chosen),
        tuple(questions.requests[i] for i in chosen),
        questions.grade,
    )


def same_answers(
    questions: Questions, ours: Sequence[Answers], theirs: Sequence[Answers]
) -> dict[str, Any]:
    """Compare answers of every model, question by question.

    Untrained replacements give sums of hundreds and thousands, of which float32 holds fewer
    decimals, so beyond `LARGE` the tolerance of all models but the first grows with the sum.

    Returns:
        The largest difference of a summed log-probability and the sum it was found at, and the
        accuracies of the first model.

    Raises:
        Disagreement: If a sum differs by more than `TOLERANCE`, or a question is graded otherwise.
    """
    require_equal("numbers of models", len(ours), len(theirs))
    worst, at, first = 0.0, 0.0, None
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        sums = other.loglikelihood
        scale = np.maximum(1.0, np.abs(sums) / LARGE) if index else np.ones(len(sums))
        require_close(
            f"summed log-probabilities of model {index}",
            (sums + (mine.loglikelihood - sums) / scale).tolist(),
            sums.tolist(),
            TOLERANCE,
        )
        gaps = np.abs(mine.loglikelihood - sums)
        if gaps.max() > worst:
            worst, at = float(gaps.max()), float(sums[int(gaps.argmax())])
        grades = questions.grade(mine)
        for task, right in questions.grade(other).items():
            require_equal(f"grades of model {index} on {task}", grades[task], right)
        first = first or grades
    return {
        "max_difference": worst,
        "sum_there": at,
        "n_models": len(ours),
        "n_requests": len(questions.requests),
        "right": {task: [sum(g), len(g)] for task, g in (first or {}).items()},
    }
