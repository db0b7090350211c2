"""The question that a run asks and the answer that its numbers give, in a sentence each.

Example::

    answer(rows)         # "At 25 %, shortgpt keeps 91.4 ±4.4 % of the dense accuracy; ..."
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamline.report.findings.rows import Row
from streamline.report.findings.uncertainty import Estimate
from streamline.report.table import percent
from streamline.results.averages import collapsed_tasks
from streamline.results.record import Record

__all__ = ["answer", "budget", "question"]

_NAMED = 3  # most methods that are named where more tie


def question(rows: Sequence[Row]) -> str:
    """What was asked: which method, of what, at which sparsities."""
    models = list(dict.fromkeys(row.model for row in rows))
    targets = sorted({row.sparsity for row in rows if not row.dense})
    at = f" {_joined([_percent(target) for target in targets])} of" if targets else ""
    return f"Which method removes{at} {_joined(models)} best?"


def answer(rows: Sequence[Row]) -> str:
    """Which method is best at each sparsity, how sure that is, and how fast its model.

    Args:
        rows: Of any models.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    sentences = []
    for model in models:
        mine = [row for row in rows if row.model == model and not row.dense]
        clauses = [
            clause
            for target in sorted({row.sparsity for row in mine})
            if (clause := _clause([row for row in mine if row.sparsity == target]))
        ]
        if clauses:
            name = f"{model}: " if len(models) > 1 else ""
            text = "; ".join(clauses)
            sentences.append(f"{name}{text if name else text[0].upper() + text[1:]}.")
    return " ".join(sentences) or "No average accuracy of a pruned model was measured."


def budget(records: Sequence[Record], settings: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers rest on: methods, tasks and questions, calibration and training.

    Args:
        records: Of a report.
        settings: The ``run.json`` of each folder, empty where there is none.
    """
    methods = {(one.method, one.recovery) for one in records if one.method != "dense"}
    tasks: dict[str, int | None] = {}
    for record in records:
        tasks |= {task: result.n for task, result in collapsed_tasks(record).items()}
    counts = [n for n in tasks.values() if n is not None]
    parts = [_count(len(methods), "method")]
    if tasks:
        of = f", {sum(counts):,} questions" if len(counts) == len(tasks) else ""
        parts.append(_count(len(tasks), "task") + of)
    seeds = {record.seed for record in records}
    if len(seeds) > 1:
        parts.append(f"{len(seeds)} seeds")
    read = {n for one in settings if (n := _calibration(one)) is not None}
    if read:
        parts.append(f"calibrated on {_joined([f'{n:,}' for n in sorted(read)])} tokens")
    trained = [one.cost.train_tokens for one in records if one.cost.train_tokens]
    if trained:
        low, high = min(trained), max(trained)
        span = f"{high:,}" if low == high else f"{low:,} to {high:,}"
        parts.append(f"trained on {span} tokens where a method trains")
    return "; ".join(parts) + "."


def _clause(rows: Sequence[Row]) -> str | None:
    """The best of the rows of one model and sparsity, and which cannot be told from it."""
    measured = [row for row in rows if row.accuracy is not None]
    ratios = all(row.relative is not None for row in measured)  # else nothing is put beside them
    there: list[tuple[Estimate, Row]] = [
        (value, row)
        for row in measured
        if (value := row.relative if ratios else row.accuracy) is not None
    ]
    if not there:
        return None
    kept, best = max(there, key=lambda item: item[0].value)
    shown = percent(kept.value, kept.stderr).replace("±", "±\u00a0").replace(" ", "\u00a0")
    what = "of the dense accuracy" if ratios else "average accuracy"
    whole = ", of which no parameter is gone," if best.removed == 0 else ""
    text = f"at {_percent(best.sparsity)}, {best.method}{whole} keeps {shown}\u00a0% {what}"
    found = best.records[0].efficiency
    speed = None if found is None else found.speed("decode", 1)
    if speed is not None and speed.ratio is not None:
        text += f" and decodes {speed.ratio.median:.2f} times as fast"
    others = [row for _, row in there if row is not best]
    if not others:
        return text
    ties = [row.method for row in others if "accuracy" in row.leads]
    if not ties:
        sure = all(_known(best, row) for row in others)
        return f"{text}, more than {_of_the_others(len(others))}{' beyond chance' if sure else ''}"
    if len(ties) == len(others) and len(ties) > 1:
        return f"{text}, and none of the other {len(ties)} can be told from it"
    if len(ties) > _NAMED:
        named = [*ties[: _NAMED - 1], f"{len(ties) - _NAMED + 1} others"]
        return f"{text}, and {_joined(named)} cannot be told from it"
    return f"{text}, and {_joined(ties)} cannot be told from it"


def _known(best: Row, other: Row) -> bool:
    """Whether it is known how far chance goes between two rows: letters, or errors of both."""
    errors = [row.accuracy.stderr for row in (best, other) if row.accuracy is not None]
    return bool(best.letters and other.letters) or None not in errors


def _of_the_others(number: int) -> str:
    return "the other one" if number == 1 else f"each of the other {number}"


def _calibration(settings: Mapping[str, Any]) -> int | None:
    """Tokens of calibration according to a run's settings."""
    known = settings.get("calibration")
    if not isinstance(known, Mapping):
        return None
    samples, length = known.get("n_samples"), known.get("length")
    return samples * length if isinstance(samples, int) and isinstance(length, int) else None


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g}\u00a0%"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
