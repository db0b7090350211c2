"""Reads the per-question files that lm-eval writes with ``--log_samples``.

The files carry summed log-likelihoods and the texts of the options but no token counts, so an
option's mean NLL is computed per UTF-8 byte of its text; where a task logs the mean NLL of its full
prompts itself (a list under ``oc_ppl``), that is used.

Example::

    tasks, skipped = read(find("lm_eval_out"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Floats

__all__ = ["find", "read"]

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_METRICS = ("acc_norm", "acc", "exact_match")
_FULL_PROMPT = "oc_ppl"


def find(path: Path) -> dict[str, Path]:
    """The newest sample log of each task at or below a path.

    Args:
        path: A ``samples_*.jsonl`` file or a folder.

    Returns:
        Task -> file; empty if there are none. Of several logs of a task, that with the latest
        time in its name counts, as in lm-eval itself.

    Raises:
        ConfigError: If one task's logs lie in several folders, as those of several models do.
    """
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    found: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match:
            found.setdefault(match["task"], []).append((match["time"] or "", file))
    for task, logs in found.items():
        folders = sorted({str(file.parent) for _, file in logs})
        if len(folders) > 1:
            raise ConfigError(
                f"Task {task} has logs in several folders below {path}; give one of them: "
                f"{', '.join(folders)}."
            )
    return {task: max(logs)[1] for task, logs in found.items()}


def read(
    logs: Mapping[str, Path], metric: str | None = None
) -> tuple[dict[str, Answers], dict[str, str]]:
    """Read sample logs.

    Args:
        logs: Task -> file.
        metric: The metric that decides what is right; by default the first of ``acc_norm``,
            ``acc`` and ``exact_match`` that a task's rows carry.

    Returns:
        Answers by task, and task -> reason for those that hold no right or wrong.

    Raises:
        ConfigError: If a file is malformed, or no task carries the given metric.
    """
    tasks: dict[str, Answers] = {}
    skipped: dict[str, str] = {}
    for task, file in logs.items():
        rows = _rows(file)
        wanted = (metric,) if metric else _METRICS
        chosen = next((name for name in wanted if all(name in row for row in rows)), None)
        if chosen is None:
            skipped[task] = f"its rows carry no {' or '.join(wanted)}"
        else:
            tasks[task] = _answers(task, file, rows, chosen)
    if not tasks:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in skipped.items())
        raise ConfigError(f"No usable lm-eval log: {reasons}. Name one of their metrics.")
    return tasks, skipped


def _rows(file: Path) -> list[dict[str, Any]]:
    """One row for each question: of several filters the first."""
    rows: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.setdefault(row["doc_id"], row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}:{number} is no lm-eval sample ({error}); a line is a JSON object with "
                "doc_id, resps and the metrics. Run lm-eval with --log_samples again."
            ) from None
    if not rows:
        raise ConfigError(f"{file} has no samples. Run lm-eval with --log_samples again.")
    return [rows[key] for key in sorted(rows)]


def _answers(task: str, file: Path, rows: Sequence[Mapping[str, Any]], metric: str) -> Answers:
    """One task's answers."""
    marks = [row[metric] for row in rows]
    odd = next((row for row, mark in zip(rows, marks, strict=True) if mark not in (0, 1)), None)
    if odd is not None:
        raise ConfigError(
            f"{file}: question {odd['doc_id']} has {metric} {odd[metric]!r}, not right (1) or "
            "wrong (0). Name a metric that counts single questions."
        )
    if all(_FULL_PROMPT in row for row in rows):
        nll: tuple[Floats, ...] | None = tuple(
            np.asarray(row[_FULL_PROMPT], dtype=np.float64) for row in rows
        )
        name: str | None = "full prompt"
    else:
        found = [_per_byte(row) for row in rows]
        kept = [values for values in found if values is not None]
        nll = tuple(kept) if len(kept) == len(rows) else None
        name = "option per byte" if nll is not None else None
    return Answers(
        task=task,
        ids=tuple(str(row["doc_id"]) for row in rows),
        hashes=tuple(row.get("doc_hash") for row in rows),
        correct=np.array([bool(mark) for mark in marks]),
        nll=nll,
        nll_name=name,
        metric=metric,
    )


def _per_byte(row: Mapping[str, Any]) -> Floats | None:
    """Minus log-likelihood over the bytes of each option; None where text is generated.

    A logged argument list is a list of pairs, or the object ``gen_args_0: {arg_0, arg_1}``.
    """
    arguments = row.get("arguments")
    answers = row.get("filtered_resps")
    if isinstance(arguments, Mapping):
        arguments = [[pair.get("arg_0"), pair.get("arg_1")] for pair in arguments.values()]
    if not isinstance(arguments, list) or not isinstance(answers, list):
        return None
    values = []
    for pair, answer in zip(arguments, answers, strict=False):
        pairs = isinstance(answer, (list, tuple)) and len(answer) == 2
        if not pairs or not isinstance(pair[1], str) or not pair[1]:
            return None
        values.append(-float(answer[0]) / len(pair[1].encode("utf-8")))
    return np.array(values, dtype=np.float64) if len(values) > 1 else None
