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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamline.errors import ConfigError
from streamline.results import lm_eval_logs, opencompass
from streamline.results.answers import Answers
from streamline.results.record import Record, label
from streamline.results.record_file import FILE_NAME
from streamline.results.samples import COLUMNS, read_samples, samples_path
from streamline.results.select import matching, run_records, select, split

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Predictions", "from_samples", "read_cells", "read_predictions"]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model's answers to several tasks.

    Attributes:
        source: As given by the caller.
        kind: ``samples``, ``lm-eval`` or ``opencompass``.
        tasks: Answers by task.
        skipped: File or task -> why it was not read.
        record: The cell's record, where the source is a run's folder.
    """

    source: str
    kind: str
    tasks: Mapping[str, Answers]
    skipped: Mapping[str, str] = field(default_factory=dict)
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
        tasks, skipped = lm_eval_logs.read(logs, metric)
        return Predictions(source=text, kind="lm-eval", tasks=tasks, skipped=skipped)
    folder = opencompass.find(path)
    if folder is not None:
        tasks, skipped = opencompass.read(folder)
        return Predictions(source=text, kind="opencompass", tasks=tasks, skipped=skipped)
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
        ConfigError: As ``read_predictions`` does, or if no finished cell fits.
    """
    text = str(source)
    path, selector = split(text)
    run = run_records(path)
    if run is None or path.is_file():
        return {text: read_predictions(source, metric)}
    records = matching(run[0], selector) or [select(run[0], selector, text)]
    many = len({record.model for record in records}) > 1
    return {
        f"{record.model} {label(record)}" if many else label(record): _of_record(
            text, run[1], record
        )
        for record in records
    }


def from_samples(frame: pd.DataFrame) -> dict[str, Answers]:
    """Answers by task from rows of ``results.samples``.

    The NLLs are those of the full prompt where the rows have them, else those of the option alone
    per token (minus ``loglikelihood`` over ``n_tokens``).

    Args:
        frame: One row for each question and option, of one model; the nullable columns of
            ``results.samples.COLUMNS`` may be absent.

    Returns:
        Answers by task, questions in the order of ``doc_id``.

    Raises:
        ConfigError: If a question's rows contradict each other.
    """
    whole = frame.reindex(columns=list(COLUMNS))
    return {
        str(task): _task_answers(str(task), rows)
        for task, rows in whole.groupby("task", sort=False)
    }


def _of_record(text: str, folder: Path, record: Record) -> Predictions:
    """The samples of one cell."""
    tasks = from_samples(read_samples(samples_path(folder, record)))
    return Predictions(source=text, kind="samples", tasks=tasks, record=record)


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
    return Predictions(source=text, kind="samples", tasks=from_samples(read_samples(path)))


def _task_answers(task: str, rows: pd.DataFrame) -> Answers:
    """One task's answers from its rows."""
    rows = rows.sort_values(["doc_id", "option"], kind="stable")
    doc_ids = rows["doc_id"].to_numpy(dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, doc_ids[1:] != doc_ids[:-1]])
    first = rows.iloc[starts]
    for column in ("doc_hash", "correct", "metric"):
        spread = np.repeat(first[column].to_numpy(), np.diff(np.r_[starts, len(rows)]))
        odd = np.flatnonzero(rows[column].to_numpy() != spread)
        if len(odd):
            raise ConfigError(
                f"Task {task}: question {doc_ids[odd[0]]} has two values of {column}; its rows "
                "come from different evaluations. Evaluate again."
            )
    metrics = sorted(set(first["metric"]))
    if len(metrics) > 1:
        raise ConfigError(f"Task {task} is scored by {' and '.join(metrics)}; use one metric.")
    values, name = _option_nll(rows)
    has_options = len(starts) < len(rows)
    return Answers(
        task=task,
        ids=tuple(str(number) for number in doc_ids[starts]),
        hashes=tuple(str(digest) for digest in first["doc_hash"]),
        correct=first["correct"].to_numpy(dtype=bool),
        nll=tuple(np.split(values, starts[1:])) if has_options and values is not None else None,
        nll_name=name if has_options else None,
        metric=metrics[0],
    )


def _option_nll(rows: pd.DataFrame) -> tuple[np.ndarray | None, str | None]:
    """Mean NLL by row, and what the mean runs over."""
    full = rows["prompt_nll"].to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isnan(full).any():
        return full, "full prompt"
    total = rows["loglikelihood"].to_numpy(dtype=np.float64, na_value=np.nan)
    tokens = rows["n_tokens"].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(total).all() or np.isnan(tokens).all():
        return None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        return -total / tokens, "option per token"
