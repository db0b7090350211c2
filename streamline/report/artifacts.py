"""What else lies in a run's folder: its settings, commands, loss curves and calibrations.

All of it is optional: a report is made from the records, and shows these where they are. What is
there and damaged is left out, and said to be.

Example::

    curves = loss_curves("out", load("out"), notes=[])
    curves[("opt-1.3b", 0.25)]["llm-streamline-ffn"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.reading import parse_json, read_arrays, read_json, read_text
from streamline.report.names import COMMANDS, SETTINGS
from streamline.results.answers import Floats
from streamline.results.record import Record
from streamline.results.record_file import FILE_NAME
from streamline.results.samples import samples_path

__all__ = ["calibrations", "loss_curves", "report_files", "run_settings"]

Curve = list[dict[str, Any]]

_AGAIN = "Remove it and run again to have it anew."


def report_files(directory: str | Path) -> dict[str, Path]:
    """The files that the report of a run's folder is made of; no other file is read.

    Args:
        directory: The run's folder.

    Returns:
        Where a report looks for it, ``cache`` left out, with ``/`` -> the file.
    """
    root = Path(directory)
    files = [root / FILE_NAME, root / SETTINGS, root / COMMANDS]
    files += sorted((root / "samples").glob("*.parquet"))
    files += [*_loss_files(root), *_calibration_files(root)]
    files += [_side(file) for file in _calibration_files(root)]
    found = {file.relative_to(root): file for file in files if file.is_file()}
    return {
        Path(*[part for part in place.parts if part != "cache"]).as_posix(): file
        for place, file in found.items()
    }


def run_settings(directory: str | Path) -> dict[str, Any]:
    """The settings that the run wrote into ``run.json``; empty if there are none.

    Raises:
        ConfigError: If the file is not a JSON object, or has not the content of its checksum.
    """
    path = Path(directory) / SETTINGS
    if not path.is_file():
        return {}
    advice = "Restore it, or remove it and run again: it is written anew, its sources chosen anew."
    settings = read_json(path, advice)
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no object of settings. {advice}")
    checksum = settings.pop("checksum", None)
    if checksum is not None and checksum != content_key(settings):
        raise ConfigError(f"{path} is damaged: it does not have its checksum. {advice}")
    return settings


def loss_curves(
    directory: str | Path, records: Sequence[Record], notes: list[str]
) -> dict[tuple[str, float | None], dict[str, Curve]]:
    """Loss curves by model and sparsity.

    Args:
        directory: The run's folder; ``losses/*.jsonl`` (a JSON object to a line) and ``*.json``
            (a list of them) are read.
        records: Name the curves: a file is named after its cell's samples.
        notes: Receives why a file was left out.

    Returns:
        (model, sparsity) -> method -> evaluations. Files of no known cell are under ("", None)
        by their own names.
    """
    stems = {samples_path("", record).stem: record for record in records}
    curves: dict[tuple[str, float | None], dict[str, Curve]] = {}
    for file in _loss_files(Path(directory)):
        record = next((stems[stem] for stem in stems if file.stem.startswith(stem)), None)
        key: tuple[str, float | None] = ("", None)
        name = file.stem
        if record is not None:
            key = (record.model, record.sparsity)
            seed = f", seed {record.seed}" if record.seed else ""
            rest = file.stem[len(samples_path("", record).stem) :]
            name = record.method + rest + seed
        try:
            curves.setdefault(key, {})[name] = _curve(file)
        except ConfigError as error:
            notes.append(f"Losses left out: {error}")
    return curves


def calibrations(directory: str | Path, notes: list[str]) -> dict[str, Floats]:
    """Cosine matrices by model, or by folder where the model is not recorded.

    Args:
        directory: The run's folder; ``calibration/*/calibration.safetensors`` in it or in its
            ``cache`` is read, and ``calibration/*.json`` with a ``cosine``; nothing of runs in
            folders below.
        notes: Receives why a file was left out.

    Returns:
        Name -> mean token cosine between every two depths, [L + 1, L + 1]; equal ones once.
    """
    found: dict[str, Floats] = {}
    for file in _calibration_files(Path(directory)):
        try:
            kept = _statistics(file) if file.suffix == ".safetensors" else _listed(file)
            if kept is not None:
                _keep(found, *kept, file)
        except ConfigError as error:
            notes.append(f"Calibration left out: {error}")
    return found


def _loss_files(root: Path) -> list[Path]:
    folder = root / "losses"
    return sorted((*folder.glob("*.jsonl"), *folder.glob("*.json")))


def _calibration_files(root: Path) -> list[Path]:
    """The calibrations of a run, of its cache too, and matrices in JSON."""
    places = (root / "cache" / "calibration", root / "calibration")
    files = sorted(file for place in places for file in place.glob("*/calibration.safetensors"))
    return [*files, *sorted((root / "calibration").glob("*.json"))]


def _side(file: Path) -> Path:
    """Where facts about a calibration of another program lie."""
    return file.with_suffix(".json")


def _statistics(file: Path) -> tuple[str, Any] | None:
    """The model and the cosines of a calibration; None if it has none.

    What is known of those of other programs may stand in a file beside it.
    """
    arrays, metadata = read_arrays(file, ["cosine"], _AGAIN)
    if "cosine" not in arrays:
        return None
    text, side = metadata.get("facts"), _side(file)
    facts: Any = {}
    if text is not None or side.is_file():
        facts = read_json(side, _AGAIN) if text is None else parse_json(text, str(file), _AGAIN)
    inner = facts.get("facts") if isinstance(facts, dict) else None
    model = inner.get("model") if isinstance(inner, dict) else None
    return str(model or file.parent.name), arrays["cosine"]


def _listed(file: Path) -> tuple[str, Any] | None:
    """The model and the cosines of a JSON file; None if it has none."""
    content = read_json(file, _AGAIN)
    if not isinstance(content, dict) or "cosine" not in content:
        return None
    return str(content.get("model") or file.stem), content["cosine"]


def _keep(found: dict[str, Floats], name: str, values: Any, file: Path) -> None:
    """Add a matrix unless an equal one is there."""
    try:
        cosine = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{file}: its cosine is no matrix of numbers. {_AGAIN}") from None
    square = cosine.ndim == 2 and cosine.shape[0] == cosine.shape[1] > 1
    if not square or not np.isfinite(cosine).all():
        raise ConfigError(
            f"{file}: cosine has shape {list(cosine.shape)}; a square matrix of finite numbers is "
            f"expected. {_AGAIN}"
        )
    if not any(
        other.shape == cosine.shape and np.allclose(other, cosine) for other in found.values()
    ):
        found[name if name not in found else f"{name} ({file.parent.name})"] = cosine


def _curve(file: Path) -> Curve:
    if file.suffix == ".json":
        rows = read_json(file, _AGAIN)
    else:
        lines = read_text(file, _AGAIN).split("\n")
        places = [(f"{file}:{number}", line) for number, line in enumerate(lines, 1)]
        rows = [parse_json(line, where, _AGAIN) for where, line in places if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file} is no loss curve: one JSON object for each evaluation. {_AGAIN}")
    for number, row in enumerate(rows):
        for name in ("step", "tokens", "train_loss", "validation_loss"):
            value = row.get(name)
            known = isinstance(value, (int, float)) and math.isfinite(value)
            if value is not None and not known:
                raise ConfigError(f"{file}: {name} of row {number} is {value!r}. {_AGAIN}")
    return rows
