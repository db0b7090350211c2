"""Answers by task from samples: what this package keeps of each question and option.

Example::

    answers = from_samples(read_samples("cell.parquet"))
    answers["piqa"].accuracy
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Found, usable
from streamline.results.metrics import is_fraction
from streamline.results.samples import COLUMNS, read_samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["from_samples", "read_tasks"]

#: Column -> its values.
_Columns = dict[str, np.ndarray]

#: Metrics by which a question is right exactly if its right option was chosen.
_COMPARED = ("acc", "acc_norm", "acc_bytes")


def from_samples(frame: pd.DataFrame) -> dict[str, Answers]:
    """Answers by task from rows of ``results.samples``.

    The NLLs are those of the full prompt where the rows have them, else those of the option alone
    per token (minus ``loglikelihood`` over ``n_tokens``).

    Args:
        frame: One row for each question and option, of one model; the nullable columns of
            ``results.samples.COLUMNS`` may be absent.

    Returns:
        Answers by task, questions in the order of ``doc_id``; none of tasks without right answers.

    Raises:
        ConfigError: If a question's rows contradict each other, or have no finite number.
    """
    return {
        task: _task_answers(task, rows) for task, rows in _by_task(frame) if not _unmarked(rows)
    }


def read_tasks(path: Path) -> Found:
    """Answers of a samples file; a task whose rows make no sense is named, the others stay.

    Raises:
        ConfigError: If the file cannot be read, or holds no answers that can be used.
    """
    found = Found({}, {}, {})
    for task, rows in _by_task(read_samples(path)):
        if why := _unmarked(rows):
            found.skipped[task] = why
            continue
        try:
            found.tasks[task] = _task_answers(task, rows)
        except ConfigError as error:
            found.broken[task] = str(error)
    return usable(f"samples in {path}", found)


def _by_task(frame: pd.DataFrame) -> Iterator[tuple[str, _Columns]]:
    """Tasks in the order in which they come, their rows sorted by question and option.

    Every column is made an array once, and is cut for the tasks: a file may have many.
    """
    import pandas as pd

    whole = frame.reindex(columns=list(COLUMNS))
    codes, tasks = pd.factorize(whole["task"])
    columns = {
        name: whole[name].to_numpy(dtype=np.int64)
        if kind == "int64" and not nullable
        else whole[name].to_numpy(dtype=np.float64, na_value=np.nan)
        if kind != "string" and nullable
        else whole[name].to_numpy(dtype=object, na_value=None)
        for name, (kind, nullable, _) in COLUMNS.items()
    }
    order = np.lexsort((columns["option"], columns["doc_id"], codes))
    ends = np.searchsorted(codes[order], range(len(tasks)), side="right")
    begin = np.searchsorted(codes[order], 0)  # what has no task comes before
    for task, end in zip(tasks, ends, strict=True):
        yield str(task), {name: values[order[begin:end]] for name, values in columns.items()}
        begin = end


def _unmarked(rows: _Columns) -> str | None:
    """Why a task's answers are neither right nor wrong, or None if they are."""
    metrics = sorted({str(name) for name in rows["metric"] if name is not None} - {""})
    odd = [name for name in metrics if not is_fraction(name)]
    return f"{odd[0]} knows no right answers" if odd and odd == metrics else None


def _task_answers(task: str, rows: _Columns) -> Answers:
    """One task's answers from its sorted rows."""
    doc_ids = rows["doc_id"]
    starts = np.flatnonzero(np.r_[True, doc_ids[1:] != doc_ids[:-1]])
    sizes = np.diff(np.r_[starts, len(doc_ids)])
    first = {name: values[starts] for name, values in rows.items()}
    for column in ("doc_hash", "correct", "metric", "gold", "chosen"):
        values, expected = rows[column], np.repeat(first[column], sizes)
        known = (values == values) | (expected == expected)  # null is null
        odd = np.flatnonzero(known & (values != expected))
        if len(odd):
            raise ConfigError(
                f"Task {task}: question {doc_ids[odd[0]]} has two values of {column}; its rows "
                "come from different evaluations. Evaluate again."
            )
    metrics = sorted(set(first["metric"]))
    if len(metrics) > 1:
        raise ConfigError(f"Task {task} is scored by {' and '.join(metrics)}; use one metric.")
    has_options = bool((sizes > 1).any())
    _check_options(task, rows, first, sizes, has_options and metrics[0] in _COMPARED)
    nll, name = _option_nll(task, rows)
    return Answers(
        task=task,
        ids=tuple(str(number) for number in doc_ids[starts]),
        hashes=tuple(str(digest) for digest in first["doc_hash"]),
        correct=first["correct"].astype(bool),
        nll=tuple(np.split(nll, starts[1:])) if has_options and nll is not None else None,
        nll_name=name if has_options else None,
        metric=metrics[0],
    )


def _check_options(
    task: str, rows: _Columns, first: _Columns, sizes: np.ndarray, compared: bool
) -> None:
    """Refuse rows twice, gaps, and a right or chosen option that is none of the options.

    Args:
        task: Its name.
        rows: Sorted by question and option.
        first: The first row of each question.
        sizes: Rows of each question.
        compared: Whether a question is right exactly if the right option was chosen.
    """
    doc_ids, options = rows["doc_id"], rows["option"]
    expected = np.arange(len(options)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    odd = np.flatnonzero(options != expected)
    if len(odd):
        question = doc_ids[odd[0]]
        found = options[doc_ids == question].tolist()
        why = "an option is there twice" if len(set(found)) < len(found) else "one is missing"
        raise ConfigError(
            f"Task {task}: question {question} makes no sense, {why}: its options are "
            f"{', '.join(map(str, found))}. Evaluate again."
        )
    doc_ids = first["doc_id"]
    for column in ("gold", "chosen"):
        values = first[column]
        odd = np.flatnonzero((values < 0) | (values >= sizes))  # null is neither
        if len(odd):
            raise ConfigError(
                f"Task {task}: question {doc_ids[odd[0]]} has {sizes[odd[0]]} options, and "
                f"{column} is option {values[odd[0]]:.0f}. Evaluate again, on questions that have "
                "right answers."
            )
    gold, chosen, right = first["gold"], first["chosen"], first["correct"].astype(bool)
    known = ~np.isnan(gold) & ~np.isnan(chosen)
    odd = np.flatnonzero(known & (right != (gold == chosen)))
    if compared and len(odd):
        raise ConfigError(
            f"Task {task}: question {doc_ids[odd[0]]} counts as "
            f"{'right' if right[odd[0]] else 'wrong'}, but its right option is "
            f"{gold[odd[0]]:.0f} and {chosen[odd[0]]:.0f} was chosen. Evaluate "
            "again."
        )


def _option_nll(task: str, rows: _Columns) -> tuple[np.ndarray | None, str | None]:
    """Mean NLL by row, and what the mean runs over."""
    columns = ("prompt_nll", "loglikelihood", "n_tokens")
    full, total, tokens = (rows[column] for column in columns)
    if np.isnan(full).all() and np.isnan(total).all():
        return None, None
    if not np.isnan(full).all():
        if np.isnan(full).any():
            question = rows["doc_id"][np.isnan(full).argmax()]
            raise ConfigError(
                f"Task {task}: question {question} has no prompt_nll where others have one; "
                "evaluate again."
            )
        return full, "full prompt"
    with np.errstate(divide="ignore", invalid="ignore"):
        return -total / tokens, "option per token"
