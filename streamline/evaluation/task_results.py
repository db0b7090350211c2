"""From answers to numbers: a task's metrics, its rows for each question, and means over subjects.

Example::

    block, rows = finish(part, answers)                 # {"metric": "acc", "value": ...}, a frame
    combine(entry, [block_of_one_subject, block_of_another])
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from streamline.evaluation.harness import aggregate, doc_hash, quiet
from streamline.evaluation.part import Part
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.results.averages import mean, mean_stderr

if TYPE_CHECKING:
    from streamline.evaluation.scoring.score import Likelihoods

__all__ = ["combine", "finish", "gold_option", "option_rows"]


def finish(part: Part, answers: Likelihoods | Sequence[str]) -> tuple[dict[str, Any], pd.DataFrame]:
    """One task's metrics from one model's answers, as lm-eval computes them.

    Args:
        part: From :func:`build`.
        answers: Log-probabilities in the order of ``part.requests``, or generated texts in the
            order of ``part.instances``.

    Returns:
        The task's block of a record (``metric``, ``value``, ``stderr``, ``n``, ``version``,
        ``data_hash``, and all of lm-eval's ``metrics``), and a frame with one row for each
        question and option (see :mod:`streamline.results.samples`).
    """
    task, texts = part.task, part.generates
    if texts:
        replies: list[Any] = list(answers)  # type: ignore[arg-type]
    else:
        replies = list(
            zip(answers.loglikelihood.tolist(), answers.greedy.tolist(), strict=True)  # type: ignore[union-attr]
        )
    groups: dict[int, list[int]] = defaultdict(list)
    for index, (instance, reply) in enumerate(zip(part.instances, replies, strict=True)):
        instance.resps = [reply] * (instance.repeats or 1)
        instance.filtered_resps = {}
        groups[int(instance.doc_id)].append(index)
    values: dict[str, list[Any]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    with quiet():
        task.apply_filters()
        key = next(iter(part.instances[0].filtered_resps))
        for doc_id, indices in groups.items():
            options = sorted((part.instances[i] for i in indices), key=lambda option: option.idx)
            doc = options[0].doc
            metrics = task.process_results(doc, [o.filtered_resps[key] for o in options])
            for name, value in metrics.items():
                values[name].append(value)
            metric = part.entry.metric if part.entry.metric in metrics else next(iter(metrics))
            common = {
                "task": part.name,
                "doc_id": doc_id,
                "doc_hash": doc_hash(doc),
                "correct": bool(np.all(metrics[metric] == 1)),
                "metric": metric,
            }
            if texts:
                rows.append(common | {"option": 0})
            else:
                rows += option_rows(part, doc, options, indices, answers, common)  # type: ignore[arg-type]
        result = aggregate(task, values)
    metric = part.entry.metric if part.entry.metric in values else next(iter(values))
    value, stderr = result[metric]
    block = {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(groups),
        "version": task.VERSION,
        "data_hash": part.data_hash,
        "metrics": {name: number for name, (number, _) in result.items() if number is not None},
    }
    return block, pd.DataFrame(rows)


def combine(entry: TaskEntry, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a report from its tasks: their unweighted mean (MMLU's subjects).

    Its standard error comes from those of the subjects; where a limit leaves one question to a
    subject, which has none, it comes from the spread of the subjects' values (too wide, if
    anything, since subjects differ in difficulty).
    """
    if len(blocks) == 1 and len(entry.tasks) == 1:
        return dict(blocks[0])
    values = [block["value"] for block in blocks]
    stderr = mean_stderr([block["stderr"] for block in blocks])
    if stderr is None and len(blocks) > 1:
        stderr = float(np.std(values, ddof=1)) / len(blocks) ** 0.5
    return {
        "metric": blocks[0]["metric"],
        "value": mean(values),
        "stderr": stderr,
        "n": sum(block["n"] for block in blocks),
        "version": blocks[0]["version"],
        "subjects": len(blocks),
    }


def option_rows(
    part: Part,
    doc: Any,
    options: list[Any],
    indices: list[int],
    answers: Likelihoods,
    common: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of one question of a task with log-probabilities, one for each option.

    Args:
        part: The task's questions.
        doc: lm-eval's document of the question.
        options: Its requests, in the order of the options.
        indices: Where they are among ``part.instances``, in any order.
        answers: Log-probabilities in the order of ``part.requests``.
        common: Columns that are equal in all rows of the question.
    """
    indices = sorted(indices, key=lambda index: part.instances[index].idx)
    sums = answers.loglikelihood[indices]
    lengths: list[int] | None = None
    if part.entry.protocol == "opencompass-ppl":
        lengths = list(doc["n_tokens"])
        means = -sums / np.array(lengths)
        chosen, gold = int(np.argmin(means)), int(doc["gold"])
    elif part.task.OUTPUT_TYPE == "loglikelihood":
        chosen, gold = 0, 0
    else:
        choices = part.task.doc_to_choice(doc)
        sums = sums[: len(choices)]
        norm = {
            "acc_norm": np.array([float(len(choice)) for choice in choices]),
            "acc_bytes": np.array([float(len(choice.encode())) for choice in choices]),
        }.get(common["metric"], np.ones(len(choices)))
        chosen = int(np.argmax(sums / norm))
        gold = gold_option(part.task, doc, choices, chosen)
    return [
        common
        | {
            "option": option,
            "loglikelihood": float(sums[option]),
            "n_tokens": int(answers.n_tokens[index]),
            "n_bytes": len(options[option].args[1].encode("utf-8")),
            "prompt_nll": None if lengths is None else float(means[option]),
            "prompt_tokens": None if lengths is None else int(lengths[option]),
            "gold": gold,
            "chosen": chosen,
        }
        for option, index in enumerate(indices[: len(sums)])
    ]


def gold_option(task: Any, doc: Any, choices: Sequence[str], chosen: int = -1) -> int:
    """Index of the right option as lm-eval reads it; of several the chosen one, else the first."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = [
        choices.index(one) if isinstance(one, str) else int(one)
        for one in (gold if isinstance(gold, list) else [gold])
    ]
    return chosen if chosen in right else right[0]
