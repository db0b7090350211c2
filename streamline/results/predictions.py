"""Per-question predictions of any supported kind, read as answers by task.

Three kinds of source are distinguished by their files: samples of this package (a parquet file,
a record's file or a run's folder), lm-eval's ``--log_samples`` files, and OpenCompass
prediction folders. A source may carry a selector after its path::

    PATH[:METHOD[@SPARSITY]][,KEY=VALUE...]      KEY: model, method, sparsity, seed, recovery

such as ``out:shortgpt@0.25`` or ``out:dense,model=opt-1.3b``; only a run's folder accepts one.

Example::

    dense = read_predictions("out:dense")
    dense.kind, dense.tasks["piqa"].accuracy
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamline.errors import ConfigError
from streamline.results import lm_eval_logs, opencompass
from streamline.results.answers import Answers, Found, usable
from streamline.results.metrics import is_fraction
from streamline.results.record import Record, label
from streamline.results.record_file import FILE_NAME
from streamline.results.samples import COLUMNS, read_samples, samples_path
from streamline.results.select import matching, run_records, select, split

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Predictions",
    "cell_predictions",
    "comparable",
    "from_samples",
    "read_cells",
    "read_predictions",
    "read_tasks",
]

#: Metrics by which a question is right exactly if its right option was chosen.
_COMPARED = ("acc", "acc_norm", "acc_bytes")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model's answers to several tasks.

    Attributes:
        source: As given by the caller.
        kind: ``samples``, ``lm-eval`` or ``opencompass``.
        tasks: Answers by task.
        skipped: File or task -> why it holds no answers of the kind that is read here.
        broken: File or task -> what is wrong with it.
        record: The cell's record, where the source is a run's folder.
    """

    source: str
    kind: str
    tasks: Mapping[str, Answers]
    skipped: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    record: Record | None = None


def read_predictions(source: str | Path, metric: str | None = None) -> Predictions:
    """Read a source of any kind.

    Args:
        source: A path, with a selector if it is a run's folder of several cells.
        metric: For lm-eval files that carry several metrics: the one that decides what is right;
            by default ``acc_norm`` where it is there, else ``acc``, else ``exact_match``.

    Returns:
        The answers.

    Raises:
        ConfigError: If nothing readable lies there, or the selector fits no cell or several.
    """
    text = str(source)
    path, selector = split(text)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist. Give a samples parquet, a run's folder, a folder of lm-eval "
            "sample logs or an OpenCompass prediction folder."
        )
    run = run_records(path)
    if run is not None:
        return _of_record(text, run[1], select(run[0], selector, text))
    if selector:
        raise ConfigError(
            f"{text}: only a folder with {FILE_NAME} accepts a selector, and {path} is none."
        )
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return _from_parquet(text, path)
    logs = lm_eval_logs.find(path)
    if logs:
        return Predictions(source=text, kind="lm-eval", **lm_eval_logs.read(logs, metric)._asdict())
    folder = opencompass.find(path)
    if folder is not None:
        return Predictions(source=text, kind="opencompass", **opencompass.read(folder)._asdict())
    raise ConfigError(
        f"{path} holds no predictions: neither {FILE_NAME} or *.parquet of this package, nor "
        "lm-eval's samples_*.jsonl, nor OpenCompass's predictions/MODEL/*.json."
    )


def read_cells(source: str | Path, metric: str | None = None) -> dict[str, Predictions]:
    """Read every model that a source names: all cells of a run that its selector fits.

    Args:
        source: A run's folder with or without a selector, or any source of one model.
        metric: As in ``read_predictions``.

    Returns:
        Name -> predictions. A cell is named after its method, sparsity, recovery and seed, and
        after its model where the source holds several; any other source after itself.

    Raises:
        ConfigError: As ``read_predictions`` does, or if no finished cell fits. Of several cells
            one whose samples cannot be read has no tasks, and the reason under ``broken``.
    """
    text = str(source)
    path, selector = split(text)
    run = run_records(path)
    if run is None or path.is_file():
        return {text: read_predictions(source, metric)}
    records = matching(run[0], selector) or [select(run[0], selector, text)]
    many = len({record.model for record in records}) > 1
    cells: dict[str, Predictions] = {}
    for record in records:
        name = f"{record.model} {label(record)}" if many else label(record)
        one = _of_record if len(records) == 1 else cell_predictions
        cells[name] = one(text, run[1], record)
    return cells


def cell_predictions(text: str, folder: Path, record: Record) -> Predictions:
    """The answers of one of several cells; none, and why, where its samples cannot be read.

    Args:
        text: The source, as given.
        folder: Where its samples lie.
        record: The cell.
    """
    try:
        return _of_record(text, folder, record)
    except ConfigError as error:
        broken = {"samples": str(error)}
        return Predictions(source=text, kind="samples", tasks={}, broken=broken, record=record)


def comparable(models: Mapping[str, Predictions]) -> tuple[dict[str, Predictions], dict[str, str]]:
    """What can be compared of some models: all but what could not be read of one of them.

    Args:
        models: Name -> predictions.

    Returns:
        The models that have any answer, without the tasks that are broken in one of them, and name
        of a model, or of a model and a task -> why it is left out.
    """
    left_out = {
        f"{name}: {task}" if item.tasks else name: why
        for name, item in models.items()
        for task, why in item.broken.items()
    }
    there = {name: item for name, item in models.items() if item.tasks}
    gone = {task for item in there.values() for task in item.broken}
    kept = {
        name: replace(item, tasks={t: a for t, a in item.tasks.items() if t not in gone})
        for name, item in there.items()
    }
    return kept, left_out


def from_samples(frame: pd.DataFrame) -> dict[str, Answers]:
    """Answers by task from rows of ``results.samples``.

    The NLLs are those of the full prompt where the rows have them, else those of the option alone
    per token (minus ``loglikelihood`` over ``n_tokens``).

    Args:
        frame: One row for each question and option, of one model; the nullable columns of
            ``results.samples.COLUMNS`` may be absent.

    Returns:
        Answers by task, questions in the order of ``doc_id``; none of tasks without right answers.

    Raises:
        ConfigError: If a question's rows contradict each other, or have no finite number.
    """
    return {
        task: _task_answers(task, rows) for task, rows in _by_task(frame) if not _unmarked(rows)
    }


def read_tasks(path: Path) -> Found:
    """Answers of a samples file; a task whose rows make no sense is named, the others stay.

    Raises:
        ConfigError: If the file cannot be read, or holds no answers that can be used.
    """
    found = Found({}, {}, {})
    for task, rows in _by_task(read_samples(path)):
        if why := _unmarked(rows):
            found.skipped[task] = why
            continue
        try:
            found.tasks[task] = _task_answers(task, rows)
        except ConfigError as error:
            found.broken[task] = str(error)
    return usable(f"samples in {path}", found)


def _by_task(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    whole = frame.reindex(columns=list(COLUMNS))
    for task, rows in whole.groupby("task", sort=False):
        yield str(task), rows


def _unmarked(rows: pd.DataFrame) -> str | None:
    """Why a task's answers are neither right nor wrong, or None if they are."""
    metrics = sorted({str(name) for name in rows["metric"].dropna()} - {""})
    odd = [name for name in metrics if not is_fraction(name)]
    return f"{odd[0]} knows no right answers" if odd and odd == metrics else None


def _of_record(text: str, folder: Path, record: Record) -> Predictions:
    """The samples of one cell."""
    found = read_tasks(samples_path(folder, record))
    return Predictions(source=text, kind="samples", record=record, **found._asdict())


def _from_parquet(text: str, path: Path) -> Predictions:
    """A samples file, or a folder with exactly one."""
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if len(files) > 1:
            raise ConfigError(
                f"{path} holds samples of {len(files)} cells; give one file, or the run's folder "
                f"with a selector. There are: {', '.join(file.name for file in files)}."
            )
        path = files[0]
    return Predictions(source=text, kind="samples", **read_tasks(path)._asdict())


def _task_answers(task: str, rows: pd.DataFrame) -> Answers:
    """One task's answers from its rows."""
    rows = rows.sort_values(["doc_id", "option"], kind="stable")
    doc_ids = rows["doc_id"].to_numpy(dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, doc_ids[1:] != doc_ids[:-1]])
    sizes = np.diff(np.r_[starts, len(rows)])
    first = rows.iloc[starts]
    for column in ("doc_hash", "correct", "metric", "gold", "chosen"):
        values = rows[column].to_numpy(dtype=object, na_value=None)
        odd = np.flatnonzero(values != np.repeat(values[starts], sizes))
        if len(odd):
            raise ConfigError(
                f"Task {task}: question {doc_ids[odd[0]]} has two values of {column}; its rows "
                "come from different evaluations. Evaluate again."
            )
    metrics = sorted(set(first["metric"]))
    if len(metrics) > 1:
        raise ConfigError(f"Task {task} is scored by {' and '.join(metrics)}; use one metric.")
    has_options = bool((sizes > 1).any())
    _check_options(task, rows, starts, sizes, has_options and metrics[0] in _COMPARED)
    values, name = _option_nll(task, rows)
    return Answers(
        task=task,
        ids=tuple(str(number) for number in doc_ids[starts]),
        hashes=tuple(str(digest) for digest in first["doc_hash"]),
        correct=first["correct"].to_numpy(dtype=bool),
        nll=tuple(np.split(values, starts[1:])) if has_options and values is not None else None,
        nll_name=name if has_options else None,
        metric=metrics[0],
    )


def _check_options(
    task: str, rows: pd.DataFrame, starts: np.ndarray, sizes: np.ndarray, compared: bool
) -> None:
    """Refuse rows twice, gaps, and a right or chosen option that is none of the options.

    Args:
        task: Its name.
        rows: Sorted by question and option.
        starts: Where each question begins.
        sizes: Rows of each question.
        compared: Whether a question is right exactly if the right option was chosen.
    """
    doc_ids = rows["doc_id"].to_numpy(dtype=np.int64)
    options = rows["option"].to_numpy(dtype=np.int64)
    expected = np.arange(len(rows)) - np.repeat(starts, sizes)
    odd = np.flatnonzero(options != expected)
    if len(odd):
        question = doc_ids[odd[0]]
        found = options[doc_ids == question].tolist()
        why = "an option is there twice" if len(set(found)) < len(found) else "one is missing"
        raise ConfigError(
            f"Task {task}: question {question} makes no sense, {why}: its options are "
            f"{', '.join(map(str, found))}. Evaluate again."
        )
    first = rows.iloc[starts]
    marks = {}
    for column in ("gold", "chosen"):
        values = first[column].to_numpy(dtype=np.float64, na_value=np.nan)
        odd = np.flatnonzero((values < 0) | (values >= sizes))  # null is neither
        if len(odd):
            raise ConfigError(
                f"Task {task}: question {doc_ids[starts[odd[0]]]} has {sizes[odd[0]]} options, and "
                f"{column} is option {values[odd[0]]:.0f}. Evaluate again, on questions that have "
                "right answers."
            )
        marks[column] = values
    known = ~np.isnan(marks["gold"]) & ~np.isnan(marks["chosen"])
    right = first["correct"].to_numpy(dtype=bool)
    odd = np.flatnonzero(known & (right != (marks["gold"] == marks["chosen"])))
    if compared and len(odd):
        raise ConfigError(
            f"Task {task}: question {doc_ids[starts[odd[0]]]} counts as "
            f"{'right' if right[odd[0]] else 'wrong'}, but its right option is "
            f"{marks['gold'][odd[0]]:.0f} and {marks['chosen'][odd[0]]:.0f} was chosen. Evaluate "
            "again."
        )


def _option_nll(task: str, rows: pd.DataFrame) -> tuple[np.ndarray | None, str | None]:
    """Mean NLL by row, and what the mean runs over."""
    columns = ("prompt_nll", "loglikelihood", "n_tokens")
    full, total, tokens = (rows[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in columns)
    if np.isnan(full).all() and np.isnan(total).all():
        return None, None
    if not np.isnan(full).all():
        if np.isnan(full).any():
            question = rows["doc_id"].iloc[int(np.isnan(full).argmax())]
            raise ConfigError(
                f"Task {task}: question {question} has no prompt_nll where others have one; "
                "evaluate again."
            )
        return full, "full prompt"
    with np.errstate(divide="ignore", invalid="ignore"):
        return -total / tokens, "option per token"
