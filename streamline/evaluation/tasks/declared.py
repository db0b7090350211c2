"""The names of tasks and groups that lm-eval YAML declares, read as text.

Example::

    names_below(Path("my_tasks"))      # ["my_sums", "my_riddles"]
"""

from __future__ import annotations

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
    "declared",
    "lm_eval_tasks",
    "named_files",
    "names_below",
    "names_elsewhere",
]

_NAME = re.compile(r"^\"?(?:task|group)\"?\s*:\s*[\"']?([\w.:+-]+)[\"']?\s*$", re.MULTILINE)


@lru_cache(maxsize=1)
def names_elsewhere() -> dict[str, str | None]:
    """Every task and group that lm-eval's YAML and installed task folders declare.

    Read as text: building lm-eval's own index is ten times slower.

    Returns:
        Name to the installed folder that declares it, or None for lm-eval's own.
    """
    roots: list[tuple[Path, str | None]] = [(lm_eval_tasks(), None)]
    roots += [(path, str(path)) for path in registry.folders(registry.TASKS).values()]
    return {name: folder for root, folder in roots for name in names_below(root)}


def names_below(root: Path) -> list[str]:
    """The tasks and groups that YAML files anywhere below a folder declare.

    Raises:
        ConfigError: If one of them is not UTF-8 text.
    """
    texts = [read_text(path) for path in root.rglob("*.yaml")]
    return [name for text in texts for name in _NAME.findall(text)]


@dataclass(frozen=True)
class Declared:
    """What the YAML of one of lm-eval's tasks says of its data.

    Attributes:
        file: The YAML.
        repository: Its data set on the hub if a commit of it can be asked for, else None.
        config: Its configuration there.
    """

    file: Path
    repository: str | None
    config: str | None


@lru_cache(maxsize=64)
def declared(name: str) -> Declared | None:
    """The YAML that declares one of lm-eval's own tasks, or None."""
    for file in sorted(lm_eval_tasks().rglob("*.yaml")):
        if name in _NAME.findall(file.read_text(encoding="utf-8")):
            values = _with_included(file)
            path, config = values.get("dataset_path"), values.get("dataset_name")
            # Its own arguments would be replaced by a revision.
            pinned = isinstance(path, str) and "/" in path and not values.get("dataset_kwargs")
            return Declared(file, path if pinned else None, None if config is None else str(config))
    return None


def named_files(folder: Path) -> list[Path]:
    """The files of questions that the YAML below a folder names and that are there."""
    found: dict[Path, None] = {}
    for file in sorted(folder.rglob("*.yaml")):
        for text in _texts(_parsed(file)):
            path = Path(text)
            if path.suffix and path.is_file():
                found[path] = None
            elif path.is_absolute() and path.is_dir():
                found |= dict.fromkeys(sorted(p for p in path.rglob("*") if p.is_file()))
    return list(found)


def _with_included(file: Path) -> dict[str, Any]:
    """A task's YAML over that which it includes."""
    own = _parsed(file)
    own = own if isinstance(own, dict) else {}
    base = own.get("include")
    if isinstance(base, str) and (file.parent / base).is_file():
        return _with_included(file.parent / base) | own
    return own


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
