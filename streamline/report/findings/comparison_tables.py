"""The tables of a comparison: differences with their intervals, and groups by letters.

Example::

    for table in comparison_tables(compare(models, "dense")):
        terminal(table)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamline.report.table import Table, fixed
from streamline.results.compare import POOLED, Comparison, Difference
from streamline.results.statistics import noise_floor

__all__ = ["comparison_tables"]


def comparison_tables(result: Comparison) -> list[Table]:
    """Groups first, then the differences against the reference and against the best.

    Args:
        result: From ``compare``.

    Returns:
        Two or three tables, and one for each measure that is paired with its best.
    """
    tables = [_groups(result)]
    for against in (result.reference, result.best):
        rows = [row for row in result.rows if row.against == against]
        if rows:
            tables.append(_differences(result, against or "", rows))
    return tables + [_paired(result, measure) for measure in result.paired]


def _groups(result: Comparison) -> Table:
    """Each model's accuracy over all questions and its letters."""
    pooled = {row.model: row for row in result.rows if row.task == POOLED}
    against = next(
        row for row in result.rows if row.task == POOLED and row.against == result.reference
    )
    accuracy = {name: row.accuracy for name, row in pooled.items()}
    accuracy[result.reference] = against.accuracy - against.difference
    n = against.n
    floor = noise_floor(n, alpha=result.alpha)
    least = (
        "no difference could ever be significant"
        if math.isinf(floor)
        else (f"a difference below {100 * floor:.2f} points can never be significant")
    )
    return Table(
        name="groups",
        title="Models that share a letter cannot be told apart over all questions",
        columns=("model", "accuracy\n%", "group"),
        rows=tuple(
            (name, f"{100 * accuracy[name]:.1f}", letters)
            for name, letters in result.letters.items()
        ),
        notes=(
            f"{n} questions, {result.pooled} pooled, each question counted once: {least}.",
            f"Pairwise McNemar tests, Holm-corrected, level {result.alpha:g}.",
            *_of_seeds(result.rows),
        ),
    )


def _differences(result: Comparison, against: str, rows: list[Difference]) -> Table:
    """One row for each task and model."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    starts = [next(i for i, row in enumerate(rows) if row.task == task) for task in tasks]
    cover = 100 * (1 - result.alpha)
    return Table(
        name=f"against-{against}",
        title=f"Difference in accuracy against {against}, in points",
        columns=(
            "model",
            "task",
            "n",
            "difference",
            f"{cover:g} % interval",
            "gained",
            "lost",
            "p",
            "p\nHolm",
            "floor",
        ),
        rows=tuple(
            (
                row.model,
                row.task,
                str(row.n),
                f"{100 * row.difference:+.1f}",
                f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
                f"{row.gained:.4g}",
                f"{row.lost:.4g}",
                _p(row.p),
                _p(row.p_holm) + (" *" if row.p_holm < result.alpha else ""),
                fixed(None if math.isinf(row.floor) else 100 * row.floor, ".1f"),
            )
            for row in rows
        ),
        keys=2,
        words=2,
        sections=frozenset(starts[1:]),
        notes=(
            f"Paired bootstrap interval (percentile, seed {result.seed}); McNemar's exact test; "
            f"* after Holm's correction over this table below {result.alpha:g}.",
            "floor: the smallest difference that would be significant, uncorrected, with as many "
            "questions that only one of the two gets right.",
            *_of_seeds(rows),
        ),
    )


def _paired(result: Comparison, measure: str) -> Table:
    """Each model's stability or perplexity, and how far it is from the best one's."""
    found, (kind, *text) = result.paired[measure], measure.split(" ", 1)
    rows = []
    for name, value in found.values.items():
        one, p_holm = found.differences.get(name), found.p_holm.get(name)
        told = " *" if found.apart(name, result.alpha) else ""
        far = ("best", "", "", "")
        if one is not None:
            low, middle, high = (
                f"{end:.3f}" if text else f"{100 * end:+.1f}"
                for end in (one.low, one.value, one.high)
            )
            known = ["-" if p is None else _p(p) for p in (one.p, p_holm)]
            far = (middle, f"{low} to {high}", known[0], known[1] + told)
        rows.append((name, f"{value:,.4g}" if text else f"{100 * value:.1f}", *far))
    return Table(
        name=measure.replace(" ", "-"),
        title=f"{' of '.join([kind.capitalize(), *text])} beside the best, {found.best}",
        columns=(
            "model",
            kind if text else f"{kind}\n%",
            "times" if text else "points more",
            f"{100 * (1 - result.alpha):g} % interval",
            "p",
            "p\nHolm",
        ),
        rows=tuple(rows),
        notes=(
            "Paired by window of the text."
            if text
            else "Paired by question, with the dense model's weights; the mean over tasks.",
            "Student's t, over windows or questions and, where there are several, seeds (Welch); "
            f"* after Holm's correction over this table below {result.alpha:g}.",
        ),
    )


def _of_seeds(rows: Sequence[Difference]) -> list[str]:
    """How models of several seeds were tested, if there are any."""
    seeds = max(row.seeds for row in rows)
    if seeds == 1:
        return []
    return [
        f"Answers of up to {seeds} seeds: where they differ, test, interval and floor are those of "
        "Student's t (Welch) over questions and seeds together, and gained and lost are means."
    ]


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
