"""Stability: how far a pruned model answers the questions that its dense model is sure of alike.

Accuracy hides answers that flip both ways. Stability is the weighted fraction of a task's questions
that both models get right or both get wrong; a question weighs the more, the further apart the
dense model's mean negative log-likelihoods (NLLs) of its options lie. Two models that are both
wrong count as stable even if they choose different wrong options: that is the paper's definition.

It works on per-question answers (``results.predictions`` reads them from samples of this package,
of lm-eval and of OpenCompass) and on nothing else.

Example::

    result = stability(dense, pruned)          # two Answers to one task
    result.value, result.agreement, result.counts()

Reference:
    LLM-Streamline, arXiv:2403.19135 (v3), Eq. 5 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Bools, Floats, align, questions_text
from streamline.results.averages import grouped_by_task, mean, mean_stderr

__all__ = [
    "KINDS",
    "Stability",
    "agreement",
    "grouped",
    "macro",
    "option_std",
    "question_weights",
    "stability",
    "weighted_fraction",
]

Compat = Literal["release"]
#: What can become of an answer.
KINDS = ("both_right", "lost", "gained", "both_wrong")


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How two models' answers to one task, or to a group of tasks, relate.

    Attributes:
        task: The task's or the group's name.
        value: The stability in [0, 1]; None where there are no options to compare.
        stderr: Its standard error by the delta method; None for fewer than two questions.
        agreement: The same fraction without weights.
        both_right: Questions that both models answer right.
        lost: Right before, wrong after.
        gained: Wrong before, right after.
        both_wrong: Questions that both models answer wrong.
        accuracy_dense: Accuracy of the dense model on these questions.
        accuracy_pruned: Accuracy of the pruned model.
        metric: The metric that decides what is right.
        nll: What the mean NLLs of the weights run over.
        ddof: 1 for the paper's sample std, 0 for the released script's.
        compat: ``release`` if the released script's item-order error was reproduced.
        subjects: Number of tasks that a group's values average over; 1 for a task.
        option_std: Mean std of the dense model's NLLs of the options of a question, for each kind
            of ``counts``; None for a kind without questions, empty where there are no options.
    """

    task: str
    value: float | None
    stderr: float | None
    agreement: float
    both_right: int
    lost: int
    gained: int
    both_wrong: int
    accuracy_dense: float
    accuracy_pruned: float
    metric: str
    nll: str | None
    ddof: int
    compat: str | None = None
    subjects: int = 1
    option_std: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of questions."""
        return self.both_right + self.lost + self.gained + self.both_wrong

    def counts(self) -> dict[str, int]:
        """The four counts by name."""
        return {name: getattr(self, name) for name in KINDS}

    def to_fields(self) -> dict[str, Any]:
        """The keys of a record's task block that come from here."""
        return {
            "stability": self.value,
            "stability_stderr": self.stderr,
            "stability_nll": self.nll,
            "agreement": self.agreement,
            "counts": self.counts(),
            **({"option_std": dict(self.option_std)} if self.option_std else {}),
        }


def option_std(nll: Sequence[Floats], ddof: int = 1) -> Floats:
    """Std of each question's option NLLs: how sure the model is of its answer.

    Args:
        nll: N arrays, one mean NLL for each option; questions may differ in their options.
        ddof: 1 for the sample std of the paper, 0 for the population std of the released script.

    Returns:
        Std for each question, [N], float64.

    Raises:
        ConfigError: If ``ddof`` is neither, a question has one option, or a value is not finite.

    Reference:
        LLM-Streamline, arXiv:2403.19135 (v3), Eq. 5.
    """
    if ddof not in (0, 1):
        raise ConfigError(f"ddof is {ddof}; give 1 (the paper) or 0 (the released script).")
    rows = [np.asarray(row, dtype=np.float64) for row in nll]
    short = [index for index, row in enumerate(rows) if row.size < 2]
    if short:
        raise ConfigError(
            f"{questions_text(short)} (by index) has fewer than two options; stability is "
            "defined for multiple choice only."
        )
    broken = [index for index, row in enumerate(rows) if not np.isfinite(row).all()]
    if broken:
        raise ConfigError(
            f"{questions_text(broken)} (by index) has an NLL that is not finite; evaluate the "
            "dense model again, in float32 if it overflowed."
        )
    return np.array([row.std(ddof=ddof) for row in rows], dtype=np.float64)


def question_weights(std: Floats) -> Floats:
    """Softmax of the stds over a task's questions, safe against overflow.

    Args:
        std: [N], finite.

    Returns:
        Weights that sum to 1, [N], float64.
    """
    raised = np.exp(std - std.max())
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def weighted_fraction(weights: Floats, stable: Bools) -> tuple[float, float | None]:
    """Sum of the stable questions' weights, and its standard error.

    The standard error is the delta method's for a ratio of two sums over the same questions:
    sqrt(N / (N - 1) * sum(w_i^2 (s_i - S)^2)); with equal weights it is the usual one.

    Args:
        weights: [N], summing to 1.
        stable: [N].

    Returns:
        The fraction in [0, 1] and its standard error, None for a single question.
    """
    marks = stable.astype(np.float64)
    # Summed over the smaller side, so that identical models give exactly 1 and opposite ones 0.
    fraction = 1.0 - float(weights[~stable].sum()) if stable.mean() > 0.5 else weights[stable].sum()
    n = len(marks)
    if n < 2:
        return float(fraction), None
    spread = float(np.sum(weights**2 * (marks - fraction) ** 2))
    return float(fraction), float(np.sqrt(spread * n / (n - 1)))


def agreement(dense: Answers, pruned: Answers) -> float:
    """Unweighted fraction of questions that both models get right or both get wrong.

    Raises:
        ConfigError: If the two answer different questions.
    """
    return float(np.mean(dense.correct == align(dense, pruned).correct))


def stability(
    dense: Answers, pruned: Answers, ddof: int | None = None, compat: Compat | None = None
) -> Stability:
    """Stability of one task, with the agreement and the four counts beside it.

    Only the dense model's NLLs are used; the pruned model's need not be there.

    Args:
        dense: Answers of the model before pruning.
        pruned: Answers of the model after; paired by question.
        ddof: Of the options' standard deviation: 1 as in the paper, 0 as in the released script;
            None for 1, or 0 with ``compat``.
        compat: ``release`` does as the released script does: it counts the k questions that agree
            and adds the *first* k weights of the file, whichever questions these belong to, so
            that its result depends on the order of the file.

    Returns:
        The result. ``value`` is None for a task without options.

    Raises:
        ConfigError: If the two answer different questions or under different metrics, the dense
            NLLs allow no weights, or ``compat`` is given another ``ddof`` than the script's.

    Reference:
        LLM-Streamline, arXiv:2403.19135 (v3), Eq. 6.
    """
    if compat not in (None, "release"):
        raise ConfigError(f"compat is {compat!r}; give 'release' or nothing.")
    if compat == "release" and ddof not in (None, 0):
        raise ConfigError(f"The released script uses ddof 0 for the std, and {ddof} was given.")
    ddof = (0 if compat == "release" else 1) if ddof is None else ddof
    if dense.metric != pruned.metric:
        raise ConfigError(
            f"Task {dense.task}: the dense model was scored by {dense.metric}, the pruned one by "
            f"{pruned.metric}. Evaluate both under one metric."
        )
    other = align(dense, pruned)
    before, after = dense.correct, other.correct
    stable = before == after
    value: float | None = None
    stderr: float | None = None
    masks = {
        "both_right": before & after,
        "lost": before & ~after,
        "gained": ~before & after,
        "both_wrong": ~before & ~after,
    }
    spread: dict[str, float | None] = {}
    if dense.nll is not None:
        try:
            std = option_std(dense.nll, ddof)
        except ConfigError as error:
            raise ConfigError(f"Task {dense.task}: {error}") from None
        weights = question_weights(std)
        spread = {kind: float(std[m].mean()) if m.any() else None for kind, m in masks.items()}
        value, stderr = weighted_fraction(weights, stable)
        if compat == "release":
            value, stderr = float(weights[: int(stable.sum())].sum()), None
    return Stability(
        task=dense.task,
        value=value,
        stderr=stderr,
        agreement=float(stable.mean()),
        **{kind: int(mask.sum()) for kind, mask in masks.items()},
        accuracy_dense=dense.accuracy,
        accuracy_pruned=other.accuracy,
        metric=dense.metric,
        nll=dense.nll_name,
        ddof=ddof,
        compat=compat,
        option_std=spread,
    )


def grouped(results: Sequence[Stability]) -> list[Stability]:
    """Replace the subjects of MMLU and of CMMLU by their macro average.

    Args:
        results: One for each task.

    Returns:
        One for each task or group, in the order of first appearance.
    """
    blocks = grouped_by_task(
        ((result.task, result) for result in results), lambda result: (result.metric, result.nll)
    )
    return [
        block[0] if len(block) == 1 and block[0].task == name else macro(block, name)
        for name, block in blocks.items()
    ]


def macro(block: Sequence[Stability], name: str = "") -> Stability:
    """One result for several tasks: unweighted means, counts added up; one task's own for one.

    Args:
        block: At least one.
        name: Of the group; one task is then a group too.
    """
    if len(block) == 1 and not name:
        return block[0]
    return Stability(
        task=name,
        value=mean([item.value for item in block]),
        stderr=mean_stderr([item.stderr for item in block]),
        agreement=float(np.mean([item.agreement for item in block])),
        both_right=sum(item.both_right for item in block),
        lost=sum(item.lost for item in block),
        gained=sum(item.gained for item in block),
        both_wrong=sum(item.both_wrong for item in block),
        accuracy_dense=float(np.mean([item.accuracy_dense for item in block])),
        accuracy_pruned=float(np.mean([item.accuracy_pruned for item in block])),
        metric=block[0].metric,
        nll=block[0].nll,
        ddof=block[0].ddof,
        compat=block[0].compat,
        subjects=len(block),
        option_std=_pooled_std(block),
    )


def _pooled_std(block: Sequence[Stability]) -> dict[str, float | None]:
    """Over the questions of several tasks; empty where one of them has no options."""
    if not all(item.option_std for item in block):
        return {}
    pooled: dict[str, float | None] = {}
    for kind in KINDS:
        sums = [(getattr(item, kind), item.option_std[kind]) for item in block]
        n = sum(count for count, _ in sums)
        pooled[kind] = sum(c * std for c, std in sums if std is not None) / n if n else None
    return pooled
