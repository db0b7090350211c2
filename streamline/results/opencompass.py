"""Reads OpenCompass prediction folders (PPL and LL mode).

``predictions/MODEL/DATASET.json`` holds an object with the keys "0" to "N-1"; each item has one
``label: X`` object for each option, with its mean NLL over the whole prompt (PPL mode) or its
summed log-likelihood (LL mode), then ``prediction`` and ``gold``. A large data set may be cut into
``DATASET_0.json``, ``DATASET_1.json`` and so on, whose indices each begin at 0.

Example::

    tasks, skipped = read(find(Path("outputs/default/20240312_101500")))
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.results.answers import Answers, Floats

__all__ = ["PAPER_DATASETS", "find", "read"]

# The twelve of the paper by their OpenCompass names; MMLU's and CMMLU's subjects are one each.
PAPER_DATASETS = (
    "cmnli",
    "hellaswag",
    "piqa",
    "chid-test",
    "WSC",
    "commonsense_qa",
    "BoolQ",
    "race-high",
    "race-middle",
    "C3",
    "mmlu",
    "cmmlu",
)

_SHARD = re.compile(r"(?P<base>.+)_(?P<number>\d+)")
_LABEL = "label: "


def find(path: Path) -> Path | None:
    """The one prediction folder at or below a path.

    Args:
        path: A work folder, one of its dated runs, its ``predictions``, or ``predictions/MODEL``.

    Returns:
        The folder that holds the JSON files, or None if there is none.

    Raises:
        ConfigError: If there are several (models or dates); the message lists them.
    """
    if not path.is_dir():
        return None
    if _holds_items(path):
        return path
    folders = sorted(
        model
        for parent in (path, *path.rglob("predictions"))
        if parent.name == "predictions" and parent.is_dir()
        for model in parent.iterdir()
        if model.is_dir() and _holds_items(model)
    )
    if len(set(folders)) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in sorted(set(folders)))
        raise ConfigError(f"{path} holds predictions of several runs; give one of: {names}.")
    return folders[0] if folders else None


def read(folder: Path) -> tuple[dict[str, Answers], dict[str, str]]:
    """Read all data sets of a prediction folder, shards merged.

    Args:
        folder: The folder that holds the JSON files.

    Returns:
        Answers by data set, questions in file order, and file -> reason for those not read:
        generated answers, and unfinished runs (``tmp_`` files).

    Raises:
        ConfigError: If a file is malformed or a shard is missing.
    """
    tasks: dict[str, Answers] = {}
    skipped: dict[str, str] = {}
    files = {file.stem: file for file in sorted(folder.glob("*.json"))}
    for name in [stem for stem in files if stem.startswith("tmp_")]:
        skipped[name] = "unfinished run"
        del files[name]
    for name, parts in _datasets(files).items():
        items = [item for part in parts for item in _items(part)]
        if not items:
            skipped[name] = "no items"
        elif not any(key.startswith(_LABEL) for key in items[0]):
            skipped[name] = "not in PPL or LL mode: its items have no options"
        else:
            tasks[name] = _answers(name, items)
    return tasks, skipped


def _datasets(files: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Data set -> its file or its shards in numeric order.

    A number at the end makes a shard only if number 0 is there and the plain name is not.
    """
    datasets: dict[str, dict[int, Path]] = {}
    for stem, file in files.items():
        match = _SHARD.fullmatch(stem)
        base = match["base"] if match else stem
        if match and base not in files and f"{base}_0" in files:
            datasets.setdefault(base, {})[int(match["number"])] = file
        elif not (match and base in files and f"{base}_0" in files):
            datasets[stem] = {0: file}
    for name, shards in datasets.items():
        gaps = sorted(set(range(max(shards) + 1)) - set(shards))
        if gaps:
            raise ConfigError(
                f"Data set {name} has no shard {', '.join(map(str, gaps))} of {max(shards) + 1} in "
                f"{shards[0].parent}. Copy all of its files, or evaluate it again."
            )
    return {name: [shards[n] for n in sorted(shards)] for name, shards in datasets.items()}


def _items(file: Path) -> list[dict[str, Any]]:
    """A file's items in the order of their numbers."""
    content = _load(file)
    if content is None:
        raise ConfigError(
            f'{file} is no OpenCompass prediction file: an object with the keys "0", "1", ... '
            "is expected. Remove it from the folder."
        )
    expected = {str(number) for number in range(len(content))}
    if set(content) != expected:
        odd = sorted(set(content) ^ expected)[:5]
        raise ConfigError(f"{file}: the item numbers have gaps near {', '.join(odd)}.")
    return [content[str(number)] for number in range(len(content))]


def _load(file: Path) -> dict[str, dict[str, Any]] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(content, dict) or not all(
        key.isdigit() and isinstance(item, dict) for key, item in content.items()
    ):
        return None
    return content


def _holds_items(folder: Path) -> bool:
    """Whether a folder's first readable JSON file looks like predictions."""
    for file in sorted(folder.glob("*.json")):
        content = _load(file)
        if content:
            return "prediction" in next(iter(content.values()))
    return False


def _answers(name: str, items: list[dict[str, Any]]) -> Answers:
    """One data set's answers."""
    rows = [_options(name, number, item) for number, item in enumerate(items)]
    lacking = [number for number, item in enumerate(items) if item.get("gold") is None]
    if lacking:
        raise ConfigError(
            f"Data set {name}: item {lacking[0]} has no gold. OpenCompass writes it when the data "
            "set's configuration has an output column."
        )
    return Answers(
        task=name,
        ids=tuple(str(number) for number in range(len(items))),
        hashes=tuple(
            content_key([str(item["gold"]), prompts])
            for item, (_, _, prompts) in zip(items, rows, strict=True)
        ),
        correct=np.array([str(item["prediction"]) == str(item["gold"]) for item in items]),
        nll=tuple(values for values, _, _ in rows),
        nll_name=rows[0][1],
        metric="acc",
    )


def _options(name: str, number: int, item: Mapping[str, Any]) -> tuple[Floats, str, list[Any]]:
    """NLL by option, what its mean runs over, and the scored texts."""
    labels = [item[key] for key in item if key.startswith(_LABEL)]
    for field, sign, meaning in (
        ("PPL", 1.0, "full prompt"),
        ("Loglikelihood", -1.0, "summed log-likelihood"),
    ):
        if labels and all(field in label for label in labels) and "prediction" in item:
            values = np.array([sign * float(label[field]) for label in labels], dtype=np.float64)
            return values, meaning, [label.get("prompt") for label in labels]
    raise ConfigError(
        f"Data set {name}: item {number} has no prediction, or a PPL or Loglikelihood for each "
        "label. Evaluate it again in PPL mode."
    )
