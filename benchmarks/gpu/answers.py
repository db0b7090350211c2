"""Our answers and lm-eval's, and their comparison in the model's own dtype.

lm-eval's ``hf`` model takes the log-softmax in the model's dtype unless told otherwise; in bfloat16
that alone is more than all other rounding, so it is told float32, as ours is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Disagreement, require_equal
from streamline.benchmarks.speed.lm_eval_peer import LmEval
from streamline.benchmarks.speed.questions import Questions, encode
from streamline.engine.assemble import assemble
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.scoring.score import Likelihoods, score

__all__ = ["FloatSoftmax", "agreement", "best_peer", "ours", "require_same", "whole_models"]

_EXACT = 2e-3
"""Float32: largest difference of a sum, for each 100 of the sum."""
_MEAN = 0.02
"""bfloat16: largest mean difference over the mean size of the sums."""
_ALIKE = 0.9
"""bfloat16: least fraction of the questions graded alike; options of a random model lie close."""


class FloatSoftmax(LmEval):
    """lm-eval's ``hf`` model with its softmax in float32."""

    def __init__(self, models: Sequence[Any], tokenizer: Any, batch_size: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._lms = [
            HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",
            )
            for model in models
        ]


def ours(bench: Bench, paths: Sequence[Path], asked: Questions) -> list[Likelihoods]:
    """Every path's answers; requests are encoded in our time, as lm-eval does in its own.

    Raises:
        Disagreement: If encoding gives other token ids than the requests have.
    """
    pairs = encode(asked.instances, bench.tokenizer)
    known = [(list(r.context), list(r.continuation)) for r in asked.requests]
    require_equal("token ids", [(list(a), list(b)) for a, b in pairs], known)
    return score(paths, asked.requests, batch_tokens=bench.budget)


def whole_models(paths: Sequence[Path]) -> list[Any]:
    """Each path as one model, for lm-eval."""
    return [
        path.decoder.model if path.nodes == dense_path(path.decoder).nodes else assemble(path)
        for path in paths
    ]


def best_peer(bench: Bench, asked: Questions) -> tuple[int, dict[int, float]]:
    """The batch size with which lm-eval is fastest on the dense model, and the seconds of each."""
    FloatSoftmax([bench.model], bench.tokenizer, bench.sizes.batch_sizes[0]).answer(asked)
    seconds = {}
    for size in bench.sizes.batch_sizes:
        peer = FloatSoftmax([bench.model], bench.tokenizer, size)
        started = time.perf_counter()
        peer.answer(asked)
        seconds[size] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__), seconds


def agreement(asked: Questions, mine: Likelihoods, other: Likelihoods) -> dict[str, float]:
    """How far two sets of answers are apart, and how many questions both grade alike."""
    gaps = np.abs(mine.loglikelihood - other.loglikelihood)
    grades, wanted = asked.grade(mine), asked.grade(other)
    pairs = [(a, b) for task in wanted for a, b in zip(grades[task], wanted[task], strict=True)]
    sizes = np.abs(other.loglikelihood)
    return {
        "mean_difference": float(gaps.mean()),
        "max_difference": float(gaps.max()),
        "max_scaled": float((gaps / np.maximum(1.0, sizes / 100)).max()),
        "mean_sum": float(sizes.mean()),
        "alike": sum(a == b for a, b in pairs),
        "graded": len(pairs),
    }


def require_same(
    asked: Questions, mine: Sequence[Likelihoods], other: Sequence[Likelihoods], *, exact: bool
) -> dict[str, Any]:
    """Compare every model's answers.

    Args:
        asked: The questions.
        mine: Our answers, by model.
        other: The peer's.
        exact: Whether both were computed in float32.

    Returns:
        The worst of :func:`agreement` over the models.

    Raises:
        Disagreement: If sums are further apart than rounding explains, or too many questions are
            graded otherwise.
    """
    require_equal("numbers of models", len(mine), len(other))
    found = [agreement(asked, a, b) for a, b in zip(mine, other, strict=True)]
    for index, each in enumerate(found):
        gap = each["max_scaled"] if exact else each["mean_difference"] / each["mean_sum"]
        limit = _EXACT if exact else _MEAN
        if not gap <= limit:
            raise Disagreement(
                f"summed log-probabilities of model {index} differ by {gap:.3g}, more than "
                f"{limit:g} ({each}); no time is reported"
            )
        if each["alike"] < (1.0 if exact else _ALIKE) * each["graded"]:
            raise Disagreement(
                f"model {index} is graded alike on {each['alike']} of {each['graded']} questions "
                f"only ({each}); no time is reported"
            )
    return {
        "mean_difference": max(each["mean_difference"] for each in found),
        "max_difference": max(each["max_difference"] for each in found),
        "mean_sum": found[0]["mean_sum"],
        "graded_alike": min(each["alike"] for each in found),
        "graded": found[0]["graded"],
        "n_models": len(found),
    }
