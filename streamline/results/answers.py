"""One model's answers to one task's questions, and how two such sets are paired.

Every paired statistic (stability, agreement, flips, McNemar's test) follows the same rule: the
same questions, identified by id and by the hash of their text, asked in the same way; anything else
is refused with the difference. ``results.predictions`` reads answers from files.

Example::

    answers = Answers(task="piqa", ids=("0",), hashes=(None,), correct=np.array([True]),
                      nll=(np.array([2.1, 2.4]),), nll_name="full prompt", metric="acc")
    align(answers, answers).accuracy
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamline.errors import ConfigError

__all__ = ["Answers", "Bools", "Floats", "Found", "align", "questions_text", "usable"]

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
        metric: The metric that ``correct`` follows, with the filter of the answers if it has one.
        prompts: Hash of what each question was asked with, where the source has it.
        asked: How all of them were asked, as far as the source says it: the task's version, the
            number of examples, and the like.

    Raises:
        ConfigError: If a question is there twice, or has one option only, or an NLL that is not
            finite.
    """

    task: str
    ids: tuple[str, ...]
    hashes: tuple[str | None, ...]
    correct: Bools
    nll: tuple[Floats, ...] | None
    nll_name: str | None
    metric: str
    prompts: tuple[str | None, ...] | None = None
    asked: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no statistic can be made of."""
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise ConfigError(
                f"Task {self.task}: {questions_text(twice)} is there twice. Evaluate it again."
            )
        for name, row in zip(self.ids, self.nll or (), strict=False):
            if len(row) < 2:
                raise ConfigError(
                    f"Task {self.task}: question {name} has fewer than two options, which is no "
                    "choice. Correct its data, and evaluate it again."
                )
            broken = np.flatnonzero(~np.isfinite(row))
            if len(broken):
                raise ConfigError(
                    f"Task {self.task}: the mean NLL of option {broken[0]} of question {name} is "
                    f"{row[broken[0]]}, which is not finite. Evaluate the model again, in bfloat16 "
                    "or float32 if it was float16."
                )

    @property
    def contents(self) -> tuple[tuple[str | None, str | None], ...]:
        """For each question the hashes of its text and of what it was asked with."""
        return tuple(zip(self.hashes, self.prompts or [None] * len(self.ids), strict=True))

    @property
    def accuracy(self) -> float:
        """Fraction of the questions answered right."""
        return float(np.mean(self.correct))


class Found(NamedTuple):
    """What a reader made of a source.

    Attributes:
        tasks: Answers by task.
        skipped: File or task -> why it holds no answers of the kind that is read here.
        broken: File or task -> what is wrong with it.
    """

    tasks: dict[str, Answers]
    skipped: dict[str, str]
    broken: dict[str, str]


def usable(what: str, found: Found) -> Found:
    """What a reader found, if there is any answer in it.

    Args:
        what: The kind of source, as in ``No usable lm-eval log``.
        found: Of all its files.

    Raises:
        ConfigError: If there is none; the message has the reason of each file.
    """
    if not found.tasks:
        reasons = [f"{name}: {why}" for name, why in (found.skipped | found.broken).items()]
        raise ConfigError(f"No usable {what}: {'; '.join(reasons) or 'it is empty'}")
    return found


def align(dense: Answers, pruned: Answers) -> Answers:
    """The pruned model's answers in the order of the dense model's.

    Questions are paired by id where id, hash and prompt agree. Where they do not, but both files
    hold the same questions by hash and prompt, they are paired by these: the file was shuffled and
    numbered anew.

    Args:
        dense: Gives the order.
        pruned: Is put into it.

    Returns:
        ``pruned``, reordered.

    Raises:
        ConfigError: If the questions or how they were asked differ; the message names which.
    """
    unlike = [
        f"{what} is {value} in the first and {pruned.asked[what]} in the second"
        for what, value in dense.asked.items()
        if pruned.asked.get(what, value) != value
    ]
    if unlike:
        raise ConfigError(
            f"Task {dense.task} was not asked alike: {'; '.join(unlike)}. Evaluate both models on "
            "one version of the task, with the same examples and prompts."
        )
    if not dense.ids or not pruned.ids:
        raise ConfigError(f"Task {dense.task} has no questions on one side; evaluate it again.")
    index = {name: number for number, name in enumerate(pruned.ids)}
    only_dense = [name for name in dense.ids if name not in index]
    only_pruned = sorted(set(pruned.ids) - set(dense.ids), key=_natural)
    both = [(number, index[name]) for number, name in enumerate(dense.ids) if name in index]
    mine, theirs = dense.contents, pruned.contents
    differing = [
        [
            dense.ids[first]
            for first, second in both
            if None not in (mine[first][part], theirs[second][part])
            and mine[first][part] != theirs[second][part]
        ]
        for part in (0, 1)
    ]
    if not (only_dense or only_pruned or any(differing)):
        return _take(pruned, [number for _, number in both])
    if None not in dense.hashes and Counter(mine) == Counter(theirs):
        waiting: dict[object, list[int]] = {}
        for number, content in enumerate(theirs):
            waiting.setdefault(content, []).append(number)
        return _take(pruned, [waiting[content].pop(0) for content in mine])
    found = {
        "only in the first": only_dense,
        "only in the second": only_pruned,
        "with another doc_hash": differing[0],
        "asked with another prompt": [name for name in differing[1] if name not in differing[0]],
    }
    parts = [f"{questions_text(names)} {where}" for where, names in found.items() if names]
    raise ConfigError(
        f"Task {dense.task}: the two sets of questions differ: {'; '.join(parts)}. Evaluate both "
        "models on the same questions (same task version, examples, limit and data)."
    )


def _take(answers: Answers, indices: Sequence[int]) -> Answers:
    """The same answers in another order."""
    prompts = answers.prompts
    return replace(
        answers,
        ids=tuple(answers.ids[index] for index in indices),
        hashes=tuple(answers.hashes[index] for index in indices),
        correct=answers.correct[list(indices)],
        nll=None if answers.nll is None else tuple(answers.nll[index] for index in indices),
        prompts=None if prompts is None else tuple(prompts[index] for index in indices),
    )


def questions_text(names: Sequence[object]) -> str:
    """``3 questions (1, 2, 3)``, cut after a few."""
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} question{'s' if len(names) > 1 else ''} ({shown}{more})"


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by value before words by letter."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
