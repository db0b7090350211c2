"""Reads OpenCompass prediction folders (PPL and LL mode).

``predictions/MODEL/DATASET.json`` holds an object with the keys "0" to "N-1"; each item has one
``label: X`` object for each option, with its mean NLL over the whole prompt (PPL mode) or its
summed log-likelihood (LL mode), then ``prediction`` and ``gold``. A large data set may be cut into
``DATASET_0.json``, ``DATASET_1.json`` and so on, whose indices each begin at 0.

Example::

    read(find(Path("outputs/default/20240312_101500"))).tasks["piqa"].accuracy
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.reading import read_json
from streamline.results.answers import Answers, Floats, Found, usable

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


def read(folder: Path) -> Found:
    """Read all data sets of a prediction folder, shards merged.

    Args:
        folder: The folder that holds the JSON files.

    Returns:
        Answers by data set, questions in file order. Generated answers and unfinished runs
        (``tmp_`` files) are passed over.

    Raises:
        ConfigError: If no file can be used.
    """
    found = Found({}, {}, {})
    files = {file.stem: file for file in sorted(folder.glob("*.json"))}
    for name in [stem for stem in files if stem.startswith("tmp_")]:
        found.skipped[name] = "unfinished run"
        del files[name]
    for name, shards in _datasets(files).items():
        try:
            items = [item for part in _whole(name, shards) for item in _items(part)]
            if not items:
                found.skipped[name] = "no items"
            elif not any(key.startswith(_LABEL) for key in items[0]):
                found.skipped[name] = "not in PPL or LL mode: its items have no options"
            else:
                found.tasks[name] = _answers(name, items)
        except ConfigError as error:
            found.broken[name] = str(error)
    return usable("OpenCompass prediction", found)


def _datasets(files: Mapping[str, Path]) -> dict[str, dict[int, Path]]:
    """Data set -> its shards by number, or its one file.

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
    return datasets


def _whole(name: str, shards: Mapping[int, Path]) -> list[Path]:
    """A data set's files in numeric order, if none is missing."""
    gaps = sorted(set(range(max(shards) + 1)) - set(shards))
    if gaps:
        raise ConfigError(
            f"Data set {name} has no shard {', '.join(map(str, gaps))} of {max(shards) + 1} in "
            f"{next(iter(shards.values())).parent}. Copy all of its files, or evaluate it again."
        )
    return [shards[number] for number in sorted(shards)]


def _items(file: Path) -> list[dict[str, Any]]:
    """A file's items in the order of their numbers."""
    content = read_json(file, "Copy it again, or evaluate its data set again.", nan=True)
    if not _is_predictions(content):
        raise ConfigError(
            f'{file} is no OpenCompass prediction file: an object with the keys "0", "1", ... '
            "is expected. Remove it from the folder."
        )
    expected = {str(number) for number in range(len(content))}
    if set(content) != expected:
        odd = sorted(set(content) ^ expected)[:5]
        raise ConfigError(f"{file}: the item numbers have gaps near {', '.join(odd)}.")
    return [content[str(number)] for number in range(len(content))]


def _is_predictions(content: Any) -> bool:
    return isinstance(content, dict) and all(
        key.isdigit() and isinstance(item, dict) for key, item in content.items()
    )


def _holds_items(folder: Path) -> bool:
    """Whether a folder's first readable JSON file looks like predictions."""
    for file in sorted(folder.glob("*.json")):
        try:
            content = read_json(file, nan=True)
        except ConfigError:
            continue
        if content and _is_predictions(content):
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
    for number, item in enumerate(items):
        labels = [key.removeprefix(_LABEL) for key in item if key.startswith(_LABEL)]
        for field in ("gold", "prediction"):
            if str(item[field]) not in labels:
                raise ConfigError(
                    f"Data set {name}: item {number} has the {field} {str(item[field])!r}, which "
                    f"is none of its labels {', '.join(labels)}. Evaluate it on data that has "
                    "right answers."
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
        known = labels and all(isinstance(label, dict) and field in label for label in labels)
        if known and "prediction" in item:
            try:
                values = np.array([sign * float(label[field]) for label in labels])
            except (TypeError, ValueError):
                given = [label[field] for label in labels]
                raise ConfigError(
                    f"Data set {name}: item {number} has the {field} values {given}, which are "
                    "no numbers. Evaluate it again."
                ) from None
            return values, meaning, [label.get("prompt") for label in labels]
    raise ConfigError(
        f"Data set {name}: item {number} has no prediction, or a PPL or Loglikelihood for each "
        "label. Evaluate it again in PPL mode."
    )
