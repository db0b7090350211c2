"""The names of tasks and groups that lm-eval YAML declares, read as text.

Example::

    names_below(Path("my_tasks"))      # ["my_sums", "my_riddles"]
"""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from streamline import registry
from streamline.reading import read_text

__all__ = [
    "Declared",
    "HubData",
    "declared",
    "is_repository",
    "lm_eval_tasks",
    "named_files",
    "names_below",
    "names_elsewhere",
]

#: What ``dataset_path`` may say that is no repository: forms of files.
_FORMATS = (
    "arrow", "audiofolder", "cache", "csv", "generator", "hdf5", "imagefolder", "json", "lance",
    "pandas", "parquet", "pdffolder", "spark", "sql", "text", "videofolder", "webdataset", "xml",
)  # fmt: skip
_TAGS = re.compile(
    r"^\"?tag\"?\s*:[ \t]*"
    r"(?:[\"']?([\w.:+-]+)[\"']?[ \t]*$|((?:\[[^\]]*\]|\n(?:[ \t]*-[^\n]*\n?)+)))",
    re.MULTILINE,
)
_NAME = re.compile(r"^\"?(?:task|group)\"?\s*:\s*[\"']?([\w.:+-]+)[\"']?\s*$", re.MULTILINE)


@lru_cache(maxsize=1)
def names_elsewhere() -> dict[str, str | None]:
    """Every task and group that lm-eval's YAML and installed task folders declare.

    Read as text: building lm-eval's own index is ten times slower.

    Returns:
        Name to the installed folder that declares it, or None for lm-eval's own.
    """
    found: dict[str, str | None] = dict.fromkeys(_lm_eval_index().files)
    for path in registry.folders(registry.TASKS).values():
        found |= dict.fromkeys(names_below(path), str(path))
    return found


def names_below(root: Path) -> list[str]:
    """The tasks and groups that YAML files anywhere below a folder declare.

    Raises:
        ConfigError: If one of them is not UTF-8 text.
    """
    return list(_index(root).files)


@dataclass(frozen=True)
class HubData:
    """A data set on the hub that a task is read from.

    Attributes:
        repository: Its id.
        config: Its configuration there.
        revision: Branch, tag or commit that the YAML asks for; None for the main branch.
    """

    repository: str
    config: str | None
    revision: str | None


@dataclass(frozen=True)
class Declared:
    """What the YAML of a task, or of all tasks of a group, says.

    Attributes:
        files: The YAML files, those that they include among them.
        data: The data sets on the hub that they name.
    """

    files: tuple[Path, ...]
    data: tuple[HubData, ...]


def declared(name: str, folder: Path | None = None) -> Declared | None:
    """What declares a task or a group, or None where nothing does.

    Args:
        name: Its name.
        folder: A folder of tasks; None for lm-eval's own.
    """
    index = _lm_eval_index() if folder is None else _index(folder)
    tasks = list(_tasks_of(name, index, set()))
    if not tasks:
        return None
    files = dict.fromkeys(file for some, _ in tasks for file in some)
    data = dict.fromkeys(found for _, values in tasks if (found := _hub_data(values)) is not None)
    return Declared(tuple(files), tuple(data))


@dataclass(frozen=True)
class _Index:
    """The names that YAML files below a folder declare: tasks and groups, and tags with tasks."""

    files: dict[str, Path]
    tags: dict[str, list[str]]


@lru_cache(maxsize=1)
def _lm_eval_index() -> _Index:
    return _index(lm_eval_tasks())


def _index(root: Path) -> _Index:
    files: dict[str, Path] = {}
    tags: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        text = read_text(path)
        names = _NAME.findall(text)
        for name in names:
            files.setdefault(name, path)
        for line, block in _TAGS.findall(text):
            for tag in [line] if line else re.findall(r"[\w.:+-]*\w[\w.:+-]*", block):
                tags.setdefault(tag, []).extend(names)
    return _Index(files, tags)


def _tasks_of(
    member: Any, index: _Index, seen: set[str]
) -> Iterator[tuple[list[Path], dict[str, Any]]]:
    """The tasks behind a name, or behind a member of a group: files and values of each."""
    if isinstance(member, dict):
        inner = member.get("task")
        if isinstance(inner, list):
            for one in inner:
                yield from _tasks_of(one, index, seen)
        elif isinstance(inner, str):
            known = list(_tasks_of(inner, index, set()))
            for files, values in known or [([], {})]:
                yield files, values | member
        return
    if not isinstance(member, str) or member in seen:
        return
    seen.add(member)
    if member not in index.files:
        for name in index.tags.get(member, ()):
            yield from _tasks_of(name, index, seen)
        return
    files, values = _with_included(index.files[member])
    if isinstance(values.get("task"), list):
        yield files, {}
        yield from _tasks_of({"task": values["task"]}, index, seen)
    else:
        yield files, values


def _hub_data(values: dict[str, Any]) -> HubData | None:
    """The data set on the hub that a task's values name, if it is one."""
    path, config = values.get("dataset_path"), values.get("dataset_name")
    if not isinstance(path, str) or not is_repository(path):
        return None
    arguments = values.get("dataset_kwargs")
    revision = arguments.get("revision") if isinstance(arguments, dict) else None
    return HubData(
        path,
        None if config is None else str(config),
        None if revision is None else str(revision),
    )


def is_repository(path: str) -> bool:
    """Whether what ``dataset_path`` says is a data set on the hub: no form of files, none here."""
    return bool(path) and path not in _FORMATS and not Path(path).exists()


def named_files(folder: Path) -> list[Path]:
    """What decides a task's questions beside the YAML below a folder: files that this names.

    These are files and whole folders by their paths, what ``datasets`` reads for a task, and YAML
    that is included from elsewhere, with the Python beside it.
    """
    found: dict[Path, None] = {}
    index = _index(folder)
    tasks = [one for name in index.files for one in _tasks_of(name, index, set())]
    for file in dict.fromkeys(file for files, _ in tasks for file in files):
        if folder.resolve() not in file.resolve().parents:
            found |= dict.fromkeys([file, *sorted(file.parent.glob("*.py"))])
    for values in (*map(_parsed, sorted(folder.rglob("*.yaml"))), *(own for _, own in tasks)):
        for text in _texts(values):
            path = Path(text)
            if path.suffix and path.is_file():
                found[path] = None
            elif path.is_absolute() and path.name and path.is_dir():
                found |= dict.fromkeys(_files_below(path))
    for _, own in tasks:
        found |= dict.fromkeys(_data_files(own))
    return list(found)


def _data_files(values: dict[str, Any]) -> Iterator[Path]:
    """The local files that ``datasets`` reads for a task: those that its patterns fit, or all."""
    path, given = values.get("dataset_path"), values.get("dataset_kwargs")
    arguments = given if isinstance(given, dict) else {}
    if not isinstance(path, str) or not (path in _FORMATS or Path(path).is_dir()):
        return
    inside = arguments.get("data_dir")
    base = Path("" if path in _FORMATS else path)
    base = base / Path(inside).expanduser() if isinstance(inside, str) else base
    patterns = list(_texts(arguments.get("data_files")))
    if not patterns and base != Path():
        yield from _files_below(base)
    for pattern in patterns:
        names = glob.glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 - may be absolute
        for path in sorted(base / name for name in names):
            yield from [path] if path.is_file() else _files_below(path)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _with_included(file: Path) -> tuple[list[Path], dict[str, Any]]:
    """A task's YAML over that which it includes, and the files."""
    own = _parsed(file)
    own = own if isinstance(own, dict) else {}
    base = own.get("include")
    if isinstance(base, str) and (file.parent / base).is_file():
        files, values = _with_included(file.parent / base)
        return [file, *files], values | own
    return [file], own


def _parsed(file: Path) -> Any:
    """A YAML file without what its tags mean; None if it is none."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Plain)
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Reads lm-eval's ``!function`` and the like as None."""


_Plain.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested values, short enough to be a path."""
    if isinstance(value, str):
        if len(value) < 4096 and "\n" not in value:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def lm_eval_tasks() -> Path:
    """Where lm-eval keeps its tasks, without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"
