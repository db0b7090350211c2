"""One model's answers to one task's questions, and how two such sets are paired.

Every paired statistic (stability, agreement, flips, McNemar's test) follows the same rule: the
same questions, identified by id and by the hash of their text; anything else is refused with the
difference. ``results.predictions`` reads answers from files.

Example::

    answers = Answers(task="piqa", ids=("0",), hashes=(None,), correct=np.array([True]),
                      nll=(np.array([2.1, 2.4]),), nll_name="full prompt", metric="acc")
    align(answers, answers).accuracy
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamline.errors import ConfigError

__all__ = ["Answers", "Bools", "Floats", "align", "questions_text"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One model's answers to one task's questions, in the order of their file.

    Attributes:
        task: The task's name.
        ids: Name of each question within the task, unique, length N.
        hashes: Hash of each question's text, or None where the source has none.
        correct: Whether each question is answered right, [N].
        nll: Mean NLL of each question's options, N arrays of at least two values; None for a task
            that generates text.
        nll_name: What the mean runs over, such as ``full prompt``.
        metric: The metric that ``correct`` follows.
    """

    task: str
    ids: tuple[str, ...]
    hashes: tuple[str | None, ...]
    correct: Bools
    nll: tuple[Floats, ...] | None
    nll_name: str | None
    metric: str

    @property
    def accuracy(self) -> float:
        """Fraction of the questions answered right."""
        return float(np.mean(self.correct))


def align(dense: Answers, pruned: Answers) -> Answers:
    """The pruned model's answers in the order of the dense model's.

    Questions are paired by id where id and hash agree. Where the ids do not, but both files hold
    the same questions by hash, they are paired by hash: the file was shuffled and numbered anew.

    Args:
        dense: Gives the order.
        pruned: Is put into it.

    Returns:
        ``pruned``, reordered.

    Raises:
        ConfigError: If the questions differ; the message names which.
    """
    if not dense.ids or not pruned.ids:
        raise ConfigError(f"Task {dense.task} has no questions on one side; evaluate it again.")
    index = {name: number for number, name in enumerate(pruned.ids)}
    only_dense = [name for name in dense.ids if name not in index]
    only_pruned = sorted(set(pruned.ids) - set(dense.ids), key=_natural)
    both = [(number, index[name]) for number, name in enumerate(dense.ids) if name in index]
    differing = [
        dense.ids[mine]
        for mine, theirs in both
        if None not in (dense.hashes[mine], pruned.hashes[theirs])
        and dense.hashes[mine] != pruned.hashes[theirs]
    ]
    if not (only_dense or only_pruned or differing):
        return _take(pruned, [theirs for _, theirs in both])
    if None not in dense.hashes and Counter(dense.hashes) == Counter(pruned.hashes):
        waiting: dict[str | None, list[int]] = {}
        for number, digest in enumerate(pruned.hashes):
            waiting.setdefault(digest, []).append(number)
        return _take(pruned, [waiting[digest].pop(0) for digest in dense.hashes])
    parts = [
        f"{questions_text(names)} only {where}"
        for names, where in ((only_dense, "in the first"), (only_pruned, "in the second"))
        if names
    ]
    if differing:
        parts.append(f"{questions_text(differing)} with another doc_hash")
    raise ConfigError(
        f"Task {dense.task}: the two sets of questions differ: {'; '.join(parts)}. "
        "Evaluate both models on the same questions (same task version, limit and data)."
    )


def _take(answers: Answers, indices: Sequence[int]) -> Answers:
    """The same answers in another order."""
    return Answers(
        task=answers.task,
        ids=tuple(answers.ids[index] for index in indices),
        hashes=tuple(answers.hashes[index] for index in indices),
        correct=answers.correct[list(indices)],
        nll=None if answers.nll is None else tuple(answers.nll[index] for index in indices),
        nll_name=answers.nll_name,
        metric=answers.metric,
    )


def questions_text(names: Sequence[object]) -> str:
    """``3 questions (1, 2, 3)``, cut after a few."""
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} question{'s' if len(names) > 1 else ''} ({shown}{more})"


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by value before words by letter."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
