"""What was measured of a model, for its card: with the errors of a report, and for the hub's index.

Example::

    task_rows(record)      # [("piqa", "acc", "50.0 ±12.5", "16", "75.0 ±11.2"), ...]
    averages(record, dense)        # ["mean accuracy: 43.7 ±2.0 %, 600 questions of 6 tasks", ...]
"""

from __future__ import annotations

from huggingface_hub import EvalResult

from streamline.report.findings import uncertainty
from streamline.report.table import MISSING, number, percent
from streamline.results.averages import averaged_tasks, collapsed_tasks, total
from streamline.results.metrics import is_fraction
from streamline.results.record import Record, TaskResult

__all__ = ["averages", "index_entries", "task_rows"]


def task_rows(record: Record) -> list[tuple[str, ...]]:
    """A row a task: its name, metric, value, number of questions and stability."""
    return [
        (
            name,
            result.metric,
            (percent if is_fraction(result.metric) else number)(result.value, result.stderr),
            MISSING if result.n is None else f"{result.n:,}",
            percent(result.stability, result.extra("stability_stderr")),
        )
        for name, result in _tasks(record).items()
    ]


def averages(record: Record, dense: Record | None = None) -> list[str]:
    """What a report's row says of the model, in words.

    Args:
        record: The model's.
        dense: The dense model's, on the same questions; without it the ratio to it has no error.
    """
    of = averaged_tasks(record)
    n = total([result.n for result in of.values()])
    asked = f" %, {n:,} questions of {len(of)} task{'s' * (len(of) != 1)}" if n else " %"
    means = {
        "mean accuracy": (uncertainty.accuracy(record), asked),
        "relative to the base model": (uncertainty.relative(record, dense), " %"),
        "mean stability": (uncertainty.stability(record), " %"),
    }
    lines = [
        f"{name}: {percent(found.value, found.stderr)}{end}"
        for name, (found, end) in means.items()
        if found is not None
    ]
    facts = record.summary.extra("perplexity_facts") or {}
    for text in record.summary.perplexity:
        read = uncertainty.perplexity(record, text)
        if read is not None:
            tokens = (facts.get(text) or {}).get("n_tokens")
            end = f", {tokens:,} tokens" if tokens else ""
            lines.append(f"perplexity of {text}: {number(read.value, read.stderr)}{end}")
    return lines


def index_entries(record: Record) -> list[EvalResult]:
    """The results as the hub's model index reads them."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            dataset_args={"n": result.n, "num_few_shot": result.extra("shots")},
            metric_type=result.metric,
            metric_value=result.value,
            metric_name=result.metric,
        )
        for name, result in _tasks(record).items()
    ]
    return results + [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            metric_type="perplexity",
            metric_value=value,
            metric_name="perplexity",
        )
        for name, value in record.summary.perplexity.items()
        if value is not None
    ]


def _tasks(record: Record) -> dict[str, TaskResult]:
    """The tasks that were measured, subjects of a group together."""
    tasks = collapsed_tasks(record)
    return {name: result for name, result in tasks.items() if result.value is not None}
