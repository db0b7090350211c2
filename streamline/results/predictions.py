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
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamline.errors import ConfigError
from streamline.results.answers import Answers, Found
from streamline.results.readers import lm_eval_logs, opencompass
from streamline.results.readers.sample_rows import read_tasks
from streamline.results.record import Record, label
from streamline.results.record_file import FILE_NAME, load
from streamline.results.samples import samples_path
from streamline.results.select import matching, run_records, select, split

__all__ = [
    "Predictions",
    "cell_predictions",
    "comparable",
    "read_cells",
    "read_predictions",
]


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


def _of_record(text: str, folder: Path, record: Record) -> Predictions:
    """The samples of one cell."""
    found = _as_asked(read_tasks(samples_path(folder, record)), record)
    return Predictions(source=text, kind="samples", record=record, **found._asdict())


def _as_asked(found: Found, record: Record) -> Found:
    """Answers that know how their questions were asked, as the record says it."""
    asked = {
        task: result.asked
        for name, result in record.tasks.items()
        for task in (name, *(result.extra("subtasks") or ()))
    }
    tasks = {task: replace(own, asked=asked.get(task, {})) for task, own in found.tasks.items()}
    return found._replace(tasks=tasks)


def _records_beside(file: Path) -> list[Record]:
    """The records of a samples file by itself: of its run, or what was evaluated beside it."""
    folder, single = file.absolute().parent.parent, file.with_suffix(".json")
    if file.parent.name == "samples" and (folder / FILE_NAME).is_file():
        return [one for one in load(folder) if samples_path(folder, one).name == file.name]
    return load(single) if single.is_file() else []


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
    found = read_tasks(path)
    for record in _records_beside(path):
        found = _as_asked(found, record)
    return Predictions(source=text, kind="samples", **found._asdict())
