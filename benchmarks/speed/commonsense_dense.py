"""Row: six commonsense tasks on the dense model, against lm-eval's ``hf``; bfloat16 beside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamline.benchmarks.speed.common import Options, Outcome, loaded
from streamline.benchmarks.speed.peers import answer
from streamline.benchmarks.speed.questions import Questions, slices, task_parts
from streamline.benchmarks.speed.scoring_row import race_scoring, totals
from streamline.decoder import Decoder
from streamline.paths import dense_path

__all__ = ["QUESTIONS", "bf16_effect", "run"]

QUESTIONS = {"quick": 9, "default": 100, "full": 100}
"""Questions of each task, over all repetitions."""


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    half, _ = loaded(options.model, "bfloat16")
    n_each = math.ceil(QUESTIONS[options.size] / options.repeats)
    parts = task_parts(["commonsense"], tokenizer, model, n_each * options.repeats)
    cuts = slices(parts, n_each, options.repeats)
    outcome = Outcome(
        name="commonsense_dense",
        work=f"six commonsense tasks, dense, {n_each * options.repeats} questions each",
        against="lm-eval hf, its best batch size of 8, 16, 32",
        target=2.5,
    )
    paths, light = [dense_path(Decoder(model))], [dense_path(Decoder(half))]
    answer(light, Questions(cuts[0].instances[:8], cuts[0].requests[:8], cuts[0].grade), tokenizer)
    race_scoring(
        outcome,
        paths,
        tokenizer,
        cuts,
        extra={"ours_bf16": lambda i: answer(light, cuts[i], tokenizer)},
        look=lambda results, i: bf16_effect(cuts[i], results),
    )
    effects = [race.facts["bf16"] for race in outcome.races]
    outcome.facts["bf16"] = {
        "target": 3.5,
        "ratio": outcome.ratio_of("ours_bf16"),
        "accuracy": totals([effect["right"] for effect in effects]),
        "questions_graded_alike": sum(e["alike"] for e in effects) / sum(e["n"] for e in effects),
        "max_difference": max(e["max_difference"] for e in effects),
        "mean_difference": float(np.mean([e["mean_difference"] for e in effects])),
    }
    return outcome


def bf16_effect(questions: Questions, results: dict[str, Any]) -> dict[str, Any]:
    """How far answers in bfloat16 are from those in float32."""
    (exact,), (rounded,) = results["ours"], results["ours_bf16"]
    gaps = np.abs(exact.loglikelihood - rounded.loglikelihood)
    before, after = questions.grade(exact), questions.grade(rounded)
    pairs = [(a, b) for task in before for a, b in zip(before[task], after[task], strict=True)]
    return {
        "bf16": {
            "right": {task: [sum(right), len(right)] for task, right in after.items()},
            "alike": sum(a == b for a, b in pairs),
            "n": len(pairs),
            "max_difference": float(gaps.max()),
            "mean_difference": float(gaps.mean()),
        }
    }
