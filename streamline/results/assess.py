"""From one cell's answers to its results: accuracy, stability, agreement, relative accuracy.

Both sides were evaluated on the same questions; the dense model's answers weigh them. Nothing here
needs a model, so the results can be computed again from the sample files alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from streamline.results.answers import Answers
from streamline.results.averages import average, relative_accuracy
from streamline.results.metrics import is_fraction
from streamline.results.readers.sample_rows import from_samples
from streamline.results.stability import Stability, macro, stability

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Assessment", "CellResult", "assess"]


@dataclass(frozen=True)
class CellResult:
    """What the evaluation of one cell left.

    Attributes:
        tasks: For each row of the report ``metric``, ``value``, ``stderr``, ``n``, ``version``,
            ``protocol``, ``shots`` and ``subtasks``, the task names of its sample rows.
        samples: One row for each question and option, as in :mod:`streamline.results.samples`.
        perplexity: For each text ``value``, ``n_tokens`` and ``window``.
        seconds: Wall time, a shared pass split evenly over the cells that shared it.
    """

    tasks: dict[str, dict[str, Any]]
    samples: pd.DataFrame
    perplexity: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @cached_property
    def answers(self) -> dict[str, Answers]:
        """The answers by task."""
        return from_samples(self.samples)


@dataclass(frozen=True)
class Assessment:
    """The ``tasks`` and ``summary`` blocks of a record."""

    tasks: dict[str, dict[str, Any]]
    summary: dict[str, Any]


def assess(result: CellResult, dense: CellResult) -> Assessment:
    """Compare a cell with the dense model.

    Args:
        result: The cell's answers.
        dense: The dense model's answers to the same questions.

    Returns:
        The two blocks; stability is None for tasks without options, and an average over tasks is
        None if one of them is, or if they were scored by different protocols: then ``by_protocol``
        of the summary has the averages of each.

    Raises:
        ConfigError: If the two answered different questions.

    Reference:
        LLM-Streamline, arXiv:2403.19135 (v3), Eq. 5 and 6; relative accuracy is the ratio of the
        average accuracies.
    """
    own, other = result.answers, dense.answers
    tasks: dict[str, dict[str, Any]] = {}
    for name, facts in result.tasks.items():
        own_name = facts["subtasks"] == [name]
        tasks[name] = {k: value for k, value in facts.items() if k != "subtasks" or not own_name}
        if is_fraction(facts["metric"]):
            tasks[name] |= _stability(facts["subtasks"], other, own).to_fields()
    protocols: dict[str, list[str]] = {}
    for name, facts in result.tasks.items():
        if not is_fraction(facts["metric"]):
            continue  # what has no right answers is in no average
        protocols.setdefault(str(facts.get("protocol")), []).append(name)
    averages = {
        protocol: _averages({name: tasks[name] for name in names}, dense.tasks)
        for protocol, names in protocols.items()
    }
    (asked,) = protocols.values() if len(protocols) == 1 else ([],)
    whole = _averages({name: tasks[name] for name in asked}, dense.tasks)
    summary: dict[str, Any] = {
        **whole,
        "perplexity": {name: facts["value"] for name, facts in result.perplexity.items()},
        "perplexity_facts": result.perplexity,
    }
    if len(protocols) > 1:
        summary["by_protocol"] = averages
    return Assessment(tasks, summary)


def _averages(
    tasks: Mapping[str, Mapping[str, Any]], dense: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """The averages over some tasks; None each for no task."""
    accuracy = {name: facts["value"] for name, facts in tasks.items()}
    reference = {name: dense[name]["value"] for name in tasks if name in dense}
    return {
        "accuracy": average(accuracy),
        "relative_accuracy": relative_accuracy(accuracy, reference),
        "stability": average({name: facts["stability"] for name, facts in tasks.items()}),
        "agreement": average({name: facts["agreement"] for name, facts in tasks.items()}),
    }


def _stability(
    names: list[str], dense: Mapping[str, Answers], pruned: Mapping[str, Answers]
) -> Stability:
    """Stability of one row: of its task, or the mean over those that the row names."""
    return macro([stability(dense[name], pruned[name]) for name in names])
