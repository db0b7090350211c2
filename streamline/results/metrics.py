"""The metrics that records carry: which way is better, and how they are shown.

One row per metric; tables, figures and comparisons look it up here and nowhere else.

Example::

    METRICS["acc"].higher_is_better      # True
    direction("perplexity")              # "lower"
"""

from __future__ import annotations

from dataclasses import dataclass

from streamline.errors import UnknownNameError

__all__ = ["METRICS", "Metric", "direction", "is_fraction", "metric"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric reads.

    Attributes:
        higher_is_better: The direction.
        is_fraction: Whether values lie in [0, 1] and are shown in percent; others are shown as
            they are.
    """

    higher_is_better: bool
    is_fraction: bool


_UP = Metric(higher_is_better=True, is_fraction=True)
_DOWN = Metric(higher_is_better=False, is_fraction=False)

METRICS: dict[str, Metric] = {
    "acc": _UP,
    "acc_bytes": _UP,
    "acc_norm": _UP,
    "agreement": _UP,
    "bits_per_byte": _DOWN,
    "byte_perplexity": _DOWN,
    "exact_match": _UP,
    "f1": _UP,
    "loss": _DOWN,
    "perplexity": _DOWN,
    "rouge1": _UP,
    "stability": _UP,
    "word_perplexity": _DOWN,
}


def metric(name: str) -> Metric:
    """The row of a metric.

    Raises:
        UnknownNameError: If the metric has no row; the message lists those that have.
    """
    if name not in METRICS:
        raise UnknownNameError(
            f"Metric {name!r} has no direction. Known: {', '.join(METRICS)}. Add a row to "
            "streamline/results/metrics.py, or name the task's metric as one of these."
        )
    return METRICS[name]


def direction(name: str) -> str:
    """``higher`` or ``lower``: what is better under a metric."""
    return "higher" if metric(name).higher_is_better else "lower"


def is_fraction(name: str) -> bool:
    """Whether values of a metric can be averaged as accuracies; one without a row is taken as such.

    What is no fraction (bits per byte) has no right answers either.
    """
    return name not in METRICS or METRICS[name].is_fraction
