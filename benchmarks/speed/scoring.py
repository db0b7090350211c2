"""The common part of the scoring rows: our paths against a loop of lm-eval's ``hf`` model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from streamline.benchmarks.speed import common, questions
from streamline.benchmarks.speed.common import Options, Outcome, contest, require_equal
from streamline.benchmarks.speed.lm_eval_peer import LmEval, best_batch_size, same_answers
from streamline.benchmarks.speed.questions import Questions, cut, encode
from streamline.engine.assemble import assemble
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.scoring.score import Likelihoods, score

__all__ = ["answer", "race_scoring"]


def answer(paths: Sequence[Path], asked: Questions, tokenizer: Any) -> list[Likelihoods]:
    """Our answers: the requests are encoded, as the peer does in its own time, and scored.

    Raises:
        Disagreement: If encoding gives other token ids than the requests have.
    """
    pairs = encode(asked.instances, tokenizer)
    known = [(list(r.context), list(r.continuation)) for r in asked.requests]
    require_equal("token ids", [(list(a), list(b)) for a, b in pairs], known)
    return score(paths, asked.requests)


def race_scoring(
    options: Options,
    outcome: Outcome,
    paths: Sequence[Path],
    tasks: Sequence[str],
    sizes: dict[str, int],
    *,
    shots: int | None = None,
) -> Outcome:
    """Race our scorer against lm-eval's ``hf`` model and fill an outcome.

    Args:
        options: How the row is run.
        outcome: The row; changed and returned. The number of questions is added to its work.
        paths: The models, all of one decoder.
        tasks: Names of tasks or groups.
        sizes: Questions of each task over all repetitions, by size. Each repetition asks others.
        shots: Worked examples before each question; None for the tasks' own number.
    """
    model, tokenizer = common.loaded(options.model)
    n_each = math.ceil(sizes[options.size] / options.repeats)
    asked = n_each * options.repeats
    outcome.work += f", {asked} questions of each task"
    parts = questions.task_parts(tasks, tokenizer, model, asked, shots)
    cuts = questions.slices(parts, n_each, options.repeats)
    models = [_whole(path) for path in paths]
    # At the smallest size trying takes longer than the row; 8 was the best wherever it was tried.
    size = 8 if options.size == "quick" else best_batch_size(models[0], tokenizer, cuts[0])
    peer = LmEval(models, tokenizer, size)
    answer(paths[:1], Questions((cut(parts[0], 0, 2),)), tokenizer)  # warm up
    order = iter(cuts)
    outcome.races = contest(
        len(cuts),
        lambda i: answer(paths, cuts[i], tokenizer),
        lambda i: peer.answer(cuts[i]),
        lambda ours, theirs: same_answers(next(order), ours, theirs),
    )
    outcome.facts["batch_size"] = size
    if asked < sizes["full"]:
        outcome.notes.append(
            f"Both sides answer the first {asked} questions of each task instead of "
            f"{sizes['full']}, so that the peer fits the time; nothing is extrapolated."
        )
    return outcome


def _whole(path: Path) -> Any:
    """The path as one model, for lm-eval."""
    dense = path.nodes == dense_path(path.decoder).nodes
    return path.decoder.model if dense else assemble(path)
