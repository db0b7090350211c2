"""Each model's answers on disk, task by task, as soon as they are there.

Example::

    store = AnswerStore(out / "cache" / "answers")
    store.has(key, "piqa")          # whether the model with this key has answered already
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.files import write_json_atomic
from streamline.results.samples import read_samples, write_samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnswerStore"]


@dataclass(frozen=True)
class AnswerStore:
    """A folder of answers, one folder in it for each model.

    Attributes:
        folder: Made if missing.
    """

    folder: Path

    def path(self, key: str, name: str) -> Path:
        """The file of one model's answers to a task or text."""
        return self.folder / key[:16] / f"{name}.json"

    def has(self, key: str, names: str | Iterable[str]) -> bool:
        """Whether a model's answers to a task, or to all of several, are there."""
        wanted = [names] if isinstance(names, str) else names
        return all(self.path(key, name).is_file() for name in wanted)

    def write(
        self,
        key: str,
        name: str,
        block: dict[str, Any],
        seconds: float,
        samples: pd.DataFrame | None = None,
    ) -> None:
        """Keep one model's figures, and its rows question by question; the figures come last."""
        if samples is not None:
            write_samples(self.path(key, name).with_suffix(".parquet"), samples)
        write_json_atomic(self.path(key, name), {"block": block, "seconds": seconds})

    def read(self, key: str, name: str) -> tuple[dict[str, Any], float]:
        """One model's results and their seconds."""
        found = json.loads(self.path(key, name).read_text(encoding="utf-8"))
        return found["block"], found["seconds"]

    def samples(self, key: str, name: str) -> pd.DataFrame:
        """One model's rows question by question."""
        return read_samples(self.path(key, name).with_suffix(".parquet"))
