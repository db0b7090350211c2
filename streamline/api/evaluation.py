"""What evaluating and comparing models gave: tables to print, frames to compute with.

Example::

    result = sl.evaluate({"dense": model, "short": short}, tokenizer, tasks="piqa")
    print(result)
    result["short"].summary.stability, result.to_pandas()
    print(sl.compare(result))
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamline.engine.budget import removed_fraction
from streamline.engine.decoder import eval_mode
from streamline.engine.paths import Path as LayerPath
from streamline.environment import versions
from streamline.errors import ConfigError, reason
from streamline.evaluation.efficiency.bench import Bench
from streamline.progress import Progress
from streamline.report.cost_tables import PHASES
from streamline.report.findings.comparison_tables import comparison_tables
from streamline.report.findings.scoring import averages_notes
from streamline.report.render import screen_width, terminal
from streamline.report.table import Table, number, percent
from streamline.results.assess import CellResult, assess
from streamline.results.averages import averaged_tasks, averages_of, mean_stderr
from streamline.results.blocks.efficiency import Phase
from streamline.results.compare import Comparison
from streamline.results.compare import compare as compare_answers
from streamline.results.readers.sample_rows import from_samples
from streamline.results.record import Record, TaskResult

if TYPE_CHECKING:
    import pandas as pd

    from streamline.api.pruned_model import PrunedModel
    from streamline.api.variants import Dense
    from streamline.evaluation.questions import Questions

__all__ = ["Compared", "Evaluation", "assessed", "compare", "measured"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Evaluation(Mapping[str, Record]):
    """Models on the same questions: name -> record, as a run writes it.

    Attributes:
        records: One for each model, in the order in which they were given.
        samples: Each model's answers, one row for each question and option.
        reference: The model that stability and relative accuracy are measured against.
        unavailable: Tasks and texts that were left out: name to reason.
    """

    records: Mapping[str, Record]
    samples: Mapping[str, pd.DataFrame]
    reference: str
    unavailable: Mapping[str, str]

    def __getitem__(self, name: str) -> Record:
        """The record of a model."""
        return self.records[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the models."""
        return iter(self.records)

    def __len__(self) -> int:
        """Number of models."""
        return len(self.records)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each model: its averages with standard errors, then each task's value."""
        import pandas as pd

        rows = {}
        for name, record in self.records.items():
            summary = averages_of(record)
            rows[name] = {
                "removed_fraction": record.parameters.removed_fraction,
                "accuracy": summary.accuracy,
                "accuracy_stderr": _stderr(record, "stderr"),
                "relative_accuracy": summary.relative_accuracy,
                "stability": summary.stability,
                "stability_stderr": _stderr(record, "stability_stderr"),
                **{f"perplexity_{text}": value for text, value in summary.perplexity.items()},
                **{f"{phase}_ratio": ratio for phase, ratio in _ratios(record).items()},
                **{task: result.value for task, result in record.tasks.items()},
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def __str__(self) -> str:
        """The averages as a table."""
        texts = list(dict.fromkeys(t for r in self.records.values() for t in r.summary.perplexity))
        phases = list(dict.fromkeys(p for r in self.records.values() for p in _ratios(r)))
        n = sum(task.n or 0 for task in self.records[self.reference].tasks.values())
        tasks = ", ".join(self.records[self.reference].tasks)
        table = Table(
            name="evaluation",
            title=f"{tasks or 'held-out text'}: {n} questions, against {self.reference}",
            columns=(
                "model",
                "removed\n%",
                "accuracy\n%",
                "relative\n%",
                "stability\n%",
                *(f"perplexity\n{text}" for text in texts),
                *(f"{phase}\n× {self.reference}" for phase in phases),
            ),
            rows=tuple(
                (
                    name,
                    percent(record.parameters.removed_fraction),
                    percent(summary.accuracy, _stderr(record, "stderr")),
                    percent(summary.relative_accuracy),
                    percent(summary.stability, _stderr(record, "stability_stderr")),
                    *(number(summary.perplexity.get(text)) for text in texts),
                    *(number(_ratios(record).get(phase)) for phase in phases),
                )
                for name, record in self.records.items()
                for summary in (averages_of(record),)
            ),
            notes=(
                *(f"left out: {name}: {why}" for name, why in self.unavailable.items()),
                *averages_notes([*self.records.values()]),
            ),
        )
        return terminal(table, screen_width()).rstrip("\n")

    def __repr__(self) -> str:
        """The same table."""
        return str(self)


@dataclass(frozen=True, repr=False)
class Compared:
    """Which differences between models are more than chance.

    Attributes:
        comparison: The tests: each model against the reference and against the best.
    """

    comparison: Comparison

    def to_pandas(self) -> pd.DataFrame:
        """One row for each difference that was tested."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.comparison.rows])

    def __str__(self) -> str:
        """The groups that cannot be distinguished, then the differences, as tables."""
        return terminal(comparison_tables(self.comparison), screen_width()).rstrip("\n")

    def __repr__(self) -> str:
        """The same tables."""
        return str(self)


def compare(
    result: Evaluation, reference: str | None = None, *, alpha: float = 0.05, seed: int = 0
) -> Compared:
    """Compare models question by question: paired tests, and groups that cannot be distinguished.

    Args:
        result: From :func:`streamline.evaluate`.
        reference: The model that all are compared with; None for the evaluation's.
        alpha: Level of significance.
        seed: Of the bootstrap.

    Raises:
        ConfigError: If there are fewer than two models, the reference is none of them, or no task
            has questions.
    """
    if not any(len(frame) for frame in result.samples.values()):
        raise ConfigError(
            "nothing to compare: the evaluation had no questions; evaluate on a task with options"
        )
    answers = {name: from_samples(frame) for name, frame in result.samples.items()}
    return Compared(compare_answers(answers, reference or result.reference, alpha=alpha, seed=seed))


def measured(
    paths: Mapping[str, LayerPath], reference: str, level: str, seconds: float, progress: Progress
) -> dict[str, dict[str, Any]]:
    """How fast models are in turn with the reference, as a run measures it.

    Args:
        paths: Name -> the model's path.
        reference: One of the names.
        level: ``quick`` or ``full``; ``off`` measures nothing.
        seconds: What evaluating them took, of which ``quick`` may take its share.
        progress: Where to report what is being done.

    Returns:
        Name -> a record's ``efficiency``; what cannot be measured has a reason in its place.
    """
    if level == "off":
        return {}
    progress.stage(f"speed of {len(paths)} model{'s' * (len(paths) > 1)}")
    try:
        with ExitStack() as stack:
            for model in {id(m): m for m in (one.decoder.model for one in paths.values())}.values():
                stack.enter_context(eval_mode(model))
            return Bench(paths[reference].decoder, level, (), len(paths)).measure(paths, seconds)
    except Exception as error:  # the answers are worth no less without it
        log.debug("the speed could not be measured", exc_info=True)
        why = f"could not be measured: {reason(error)}"
        return {name: {"level": level, "reason": why} for name in paths}


def assessed(
    results: Mapping[str, CellResult],
    reference: str,
    paths: Mapping[str, LayerPath],
    speeds: Mapping[str, dict[str, Any]],
    pruned: Mapping[str, PrunedModel],
    questions: Questions,
    dense: Dense,
) -> Evaluation:
    """Measure every model against the reference and make a record of each.

    Args:
        results: Name -> answers.
        reference: One of the names.
        paths: Name -> the model's path.
        speeds: Name -> a record's ``efficiency``, for those that were measured.
        pruned: Name -> the pruned model, for those that are.
        questions: The questions and texts.
        dense: The model of the session.
    """
    n_dense = dense.decoder.n_parameters()
    records = {}
    for name, result in results.items():
        assessment, own = assess(result, results[reference]), pruned.get(name)
        n_own = paths[name].n_parameters()
        costs = {} if own is None else own.costs
        values: dict[str, Any] = {
            "model": dense.name,
            "method": name,
            "sparsity": 0.0 if own is None else own.variant.target.sparsity,
            "seed": 0 if own is None else own.variant.target.seed,
            "recovery": "none" if own is None else own.variant.target.recovery,
            "status": "ok",
            "parameters": {
                "dense": n_dense,
                "pruned": n_own,
                "removed_fraction": removed_fraction(n_dense, n_own),
            },
            "tasks": assessment.tasks,
            "summary": assessment.summary,
            "cost": {**costs, "eval_s": result.seconds},
            "efficiency": speeds.get(name),
            "versions": versions(dense.decoder.device),
            "notes": {"data": questions.facts()},
        }
        if own is not None:
            plan = own.plan
            values["method_repr"] = repr(own.variant.target.method)
            values["notes"] |= {**own.notes, "training": own.training}
            values["plan"] = {
                "removed_layers": plan.removed_layers,
                "kept_layers": plan.kept_layers,
                "replacement": plan.replacement,
            }
        records[name] = Record.build(values)
    samples = {name: result.samples for name, result in results.items()}
    return Evaluation(records, samples, reference, questions.unavailable)


def _ratios(record: Record) -> dict[Phase, float]:
    """How many times as fast as the reference each phase is, at batch 1, where it was measured."""
    found = {}
    for phase in PHASES:
        speed = None if record.efficiency is None else record.efficiency.speed(phase, 1)
        if speed is not None and speed.ratio is not None:
            found[phase] = speed.ratio.median
    return found


def _stderr(record: Record, field: str) -> float | None:
    """Standard error of an average over a record's tasks; None if a task has none."""
    return mean_stderr([_error(result, field) for result in averaged_tasks(record).values()])


def _error(result: TaskResult, field: str) -> float | None:
    found = getattr(result, field, None)
    return found if isinstance(found, float) else None
