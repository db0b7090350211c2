"""What else lies in a run's folder: its settings, loss curves and calibrations.

All of it is optional: a report is made from the records, and shows these where they are.

Example::

    curves = loss_curves("out", load("out"))
    curves[("opt-1.3b", 0.25)]["llm-streamline-ffn"]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.results.answers import Floats
from streamline.results.record import Record
from streamline.results.samples import samples_path

__all__ = ["calibrations", "loss_curves", "run_settings"]

Curve = list[dict[str, Any]]


def run_settings(directory: str | Path) -> dict[str, Any]:
    """The settings that the run wrote into ``run.json``; empty if there are none.

    Raises:
        ConfigError: If the file is not a JSON object.
    """
    path = Path(directory) / "run.json"
    if not path.is_file():
        return {}
    settings = _json(path.read_text(encoding="utf-8"), path)
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no object of settings; run again to write it anew.")
    return settings


def loss_curves(
    directory: str | Path, records: Sequence[Record]
) -> dict[tuple[str, float | None], dict[str, Curve]]:
    """Loss curves by model and sparsity.

    Args:
        directory: The run's folder; ``losses/**/*.jsonl`` (a JSON object to a line) and ``*.json``
            (a list of them) are read.
        records: Name the curves: a file is named after its cell's samples.

    Returns:
        (model, sparsity) -> method -> evaluations. Files of no known cell are under ("", None)
        by their own names.

    Raises:
        ConfigError: If a file is not of that form.
    """
    folder = Path(directory) / "losses"
    stems = {samples_path("", record).stem: record for record in records}
    curves: dict[tuple[str, float | None], dict[str, Curve]] = {}
    for file in sorted((*folder.rglob("*.jsonl"), *folder.rglob("*.json"))):
        record = next((stems[stem] for stem in stems if file.stem.startswith(stem)), None)
        key: tuple[str, float | None] = ("", None)
        name = file.stem
        if record is not None:
            key = (record.model, record.sparsity)
            seed = f", seed {record.seed}" if record.seed else ""
            rest = file.stem[len(samples_path("", record).stem) :]
            name = record.method + rest + seed
        curves.setdefault(key, {})[name] = _curve(file)
    return curves


def calibrations(directory: str | Path) -> dict[str, Floats]:
    """Cosine matrices by model, or by folder where the model is not recorded.

    Args:
        directory: The run's folder; every ``calibration.safetensors`` below it is read, and
            ``calibration/*.json`` with a ``cosine``.

    Returns:
        Name -> mean token cosine between every two depths, [L + 1, L + 1]; equal ones once.

    Raises:
        ConfigError: If a file holds no square matrix of finite numbers.
    """
    from safetensors import safe_open

    root = Path(directory)
    found: dict[str, Floats] = {}
    for file in sorted(root.rglob("calibration.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            facts = _json((tensors.metadata() or {}).get("facts", "{}"), file)
            name = str(facts.get("facts", {}).get("model") or file.parent.name)
            if "cosine" in tensors.keys():  # noqa: SIM118 - no mapping
                _keep(found, name, tensors.get_tensor("cosine"), file)
    for file in sorted((root / "calibration").glob("*.json")):
        content = _json(file.read_text(encoding="utf-8"), file)
        if isinstance(content, dict) and "cosine" in content:
            _keep(found, str(content.get("model") or file.stem), content["cosine"], file)
    return found


def _keep(found: dict[str, Floats], name: str, values: Any, file: Path) -> None:
    """Add a matrix unless an equal one is there."""
    cosine = np.asarray(values, dtype=np.float64)
    square = cosine.ndim == 2 and cosine.shape[0] == cosine.shape[1] > 1
    if not square or not np.isfinite(cosine).all():
        raise ConfigError(
            f"{file}: cosine has shape {list(cosine.shape)}; a square matrix of finite numbers is "
            "expected. Remove the file and run again to calibrate anew."
        )
    if not any(
        other.shape == cosine.shape and np.allclose(other, cosine) for other in found.values()
    ):
        found[name if name not in found else f"{name} ({file.parent.name})"] = cosine


def _curve(file: Path) -> Curve:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        rows = _json(text, file)
    else:
        rows = [_json(line, file) for line in text.split("\n") if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file} is no loss curve: one JSON object for each evaluation.")
    return rows


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is not JSON ({error}); remove it and run again.") from None
