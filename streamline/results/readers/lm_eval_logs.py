"""Reads the per-question files that lm-eval writes with ``--log_samples``.

The files carry summed log-likelihoods and the texts of the options but no token counts, so an
option's mean NLL is computed per UTF-8 byte of its text; where a task logs the mean NLL of its full
prompts itself (a list under ``mean_nll``, as this package's own tasks do), that is used.

Example::

    read(find("lm_eval_out")).tasks["piqa"].accuracy
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.reading import parse_json, read_text
from streamline.results.answers import Answers, Floats, Found, questions_text, usable

__all__ = ["find", "read"]

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_METRICS = ("acc_norm", "acc", "exact_match")
_FULL_PROMPT = "mean_nll"
_NO_FILTER = "none"


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


def read(logs: Mapping[str, Path], metric: str | None = None) -> Found:
    """Read sample logs.

    Args:
        logs: Task -> file.
        metric: The metric that decides what is right; by default the first of ``acc_norm``,
            ``acc`` and ``exact_match`` that a task's rows carry.

    Returns:
        Answers by task; of several filters of the answers those of the first, which the metric
        then names, as in ``exact_match,strict-match``.

    Raises:
        ConfigError: If no log can be used.
    """
    found = Found({}, {}, {})
    for task, file in logs.items():
        try:
            rows = _rows(file)
            wanted = (metric,) if metric else _METRICS
            chosen = next((name for name in wanted if all(name in row for row in rows)), None)
            if chosen is None:
                found.skipped[task] = f"its rows carry no {' or '.join(wanted)}; name a metric"
            else:
                found.tasks[task] = _answers(task, file, rows, chosen)
        except ConfigError as error:
            found.broken[task] = str(error)
    return usable("lm-eval log", found)


def _rows(file: Path) -> list[dict[str, Any]]:
    """One row for each question, in their order: of several filters those of the first."""
    advice = "Run lm-eval with --log_samples again."
    rows: dict[str, dict[Any, dict[str, Any]]] = {}
    for number, line in enumerate(read_text(file, advice).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{file}:{number}", advice, nan=True)
        doc_id = row.get("doc_id") if isinstance(row, dict) else None
        if not isinstance(doc_id, int):
            raise ConfigError(
                f"{file}:{number} is no lm-eval sample: a line is a JSON object with a number as "
                f"doc_id, arguments, filtered_resps and the metrics. {advice}"
            )
        same = rows.setdefault(str(row.get("filter", _NO_FILTER)), {})
        if doc_id in same:
            raise ConfigError(
                f"{file}:{number}: question {doc_id} is there twice; one log holds one model's "
                f"answers. {advice}"
            )
        same[doc_id] = row
    if not rows:
        raise ConfigError(f"{file} has no samples. {advice}")
    first, *others = rows.values()
    odd = sorted({doc_id for other in others for doc_id in set(first) ^ set(other)})
    if odd:
        raise ConfigError(f"{file}: {questions_text(odd)} lacks one of the filters. {advice}")
    return [first[key] for key in sorted(first)]


def _answers(task: str, file: Path, rows: Sequence[Mapping[str, Any]], metric: str) -> Answers:
    """One task's answers."""
    marks = [row[metric] for row in rows]
    odd = next((row for row, mark in zip(rows, marks, strict=True) if mark not in (0, 1)), None)
    if odd is not None:
        raise ConfigError(
            f"{file}: question {odd['doc_id']} has {metric} {odd[metric]!r}, not right (1) or "
            "wrong (0). Name a metric that counts single questions."
        )
    found = []
    for row in rows:
        try:
            found.append(_nll(row))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{file}: question {row['doc_id']} {error}. Run lm-eval with --log_samples again, "
                "on questions that have right answers."
            ) from None
    kinds = {name for name, _ in found}
    if len(kinds) > 1:
        number = next(i for i, (name, _) in enumerate(found) if name != found[0][0])
        raise ConfigError(
            f"{file}: question {rows[number]['doc_id']} has {found[number][0] or 'no options'}, "
            f"others {found[0][0] or 'no options'}; one task is of one kind."
        )
    (name,) = kinds
    used = rows[0].get("filter", _NO_FILTER)
    return Answers(
        task=task,
        ids=tuple(str(row["doc_id"]) for row in rows),
        hashes=tuple(_doc_hash(row) for row in rows),
        correct=np.array([bool(mark) for mark in marks]),
        nll=None if name is None else tuple(values for _, values in found),
        nll_name=name,
        metric=metric if used == _NO_FILTER else f"{metric},{used}",
        prompts=tuple(content_key([row.get("prompt_hash"), _texts(row)]) for row in rows),
    )


def _doc_hash(row: Mapping[str, Any]) -> str | None:
    """The question's hash; of this package's own tasks that of the question without the model."""
    doc = row.get("doc")
    own = doc.get("question_key") if isinstance(doc, dict) else None
    found = own or row.get("doc_hash")
    return None if found is None else str(found)


def _requests(row: Mapping[str, Any]) -> list[list[Any]]:
    """The arguments of each request.

    A logged argument list is a list of lists, or the object ``gen_args_0: {arg_0, arg_1}``.
    """
    given = row.get("arguments")
    if isinstance(given, Mapping):
        given = [list(one.values()) if isinstance(one, Mapping) else one for one in given.values()]
    if not isinstance(given, list) or not all(isinstance(one, (list, tuple)) for one in given):
        raise ValueError("has no list of arguments")
    return [list(one) for one in given]


def _texts(row: Mapping[str, Any]) -> list[list[str]]:
    """What was asked: the texts among the arguments of each request."""
    return [[text for text in one if isinstance(text, str)] for one in _requests(row)]


def _nll(row: Mapping[str, Any]) -> tuple[str | None, Floats]:
    """What the options' mean NLLs run over, and these; no name where there are no options.

    Only requests of a context and a continuation are options: not a text to go on from, nor a
    single continuation, nor the continuations without context of ``acc_mutual_info``.

    Raises:
        ValueError: If the question, its options or its right option make no sense.
    """
    requests = _requests(row)
    if not requests or not all(len(r) == 2 and isinstance(r[1], str) for r in requests):
        return None, np.zeros(0)
    given = row.get("filtered_resps")
    replies = given if isinstance(given, list) else []
    pairs = all(isinstance(reply, list) and len(reply) == 2 for reply in replies)
    if not pairs or len(replies) != len(requests):
        raise ValueError(f"has {len(requests)} requests, and other answers: {given!r}")
    if "acc_mutual_info" in row:
        half = len(requests) // 2
        if [text for _, text in requests[:half]] != [text for _, text in requests[half:]]:
            raise ValueError("has acc_mutual_info, but not each option with and without context")
        requests, replies = requests[:half], replies[:half]
    texts = [text for _, text in requests]
    values = np.array([_number(option, reply[0]) for option, reply in enumerate(replies)])
    if len(texts) == 1:
        return None, values
    empty = next((option for option, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise ValueError(f"makes no sense: its option {empty} is empty")
    _check_target(row.get("target"), texts)
    means = row.get(_FULL_PROMPT)
    if means is None:
        sizes = np.array([len(text.encode("utf-8")) for text in texts])
        return "option per byte", -values / sizes
    if not isinstance(means, list) or len(means) != len(texts):
        raise ValueError(f"has {len(texts)} options, and {_FULL_PROMPT} {means!r}")
    return "full prompt", np.array([_number(option, mean) for option, mean in enumerate(means)])


def _number(option: int, value: Any) -> float:
    """A finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"has {value!r} for option {option}, which is no finite number")
    return found


def _check_target(target: Any, options: Sequence[str]) -> None:
    """Refuse a right option beyond the options: that of questions without labels.

    lm-eval logs a target as text: an index, or the text of the option.
    """
    text = str(target).strip()
    if text in {option.strip() for option in options} or not re.fullmatch(r"-?\d{1,9}", text):
        if target is None or text in ("", "None"):
            raise ValueError("has no right option")
        return
    if not 0 <= int(text) < len(options):
        raise ValueError(f"has the right option {text} of {len(options)} options (no label?)")
