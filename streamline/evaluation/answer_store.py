"""Each model's answers on disk, task by task, as soon as they are there.

Answers that are damaged, or whose rows are not those they were kept with, are set aside and count
as not there, so that the questions are asked again.

Example::

    store = AnswerStore(out / "cache" / "answers")
    store.has(key, "piqa")          # whether the model with this key has answered already
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.kept import kept_json, read_json, set_aside, write_json
from streamline.results.samples import read_samples, samples_checksum, write_samples

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

    def unfinished(self, key: str, name: str) -> Path:
        """The file of one model's answers to a task or text that are not yet complete."""
        return self.path(key, name).with_suffix(".part.safetensors")

    def has(self, key: str, names: str | Iterable[str]) -> bool:
        """Whether a model's answers to a task, or to all of several, are there and whole."""
        wanted = [names] if isinstance(names, str) else names
        return all(self._whole(key, name) for name in wanted)

    def _whole(self, key: str, name: str) -> bool:
        found = kept_json(self.path(key, name))
        rows = self._rows(key, name)
        if found is None or found["rows"] == (samples_checksum(rows) if found["rows"] else None):
            return found is not None
        if rows.is_file():
            set_aside(rows, "it does not have the checksum that its answers name")
        return False

    def write(
        self,
        key: str,
        name: str,
        block: dict[str, Any],
        seconds: float,
        samples: pd.DataFrame | None = None,
    ) -> None:
        """Keep one model's figures, and its rows question by question; the figures come last."""
        rows = self._rows(key, name)
        if samples is not None:
            write_samples(rows, samples)
        checksum = None if samples is None else samples_checksum(rows)
        write_json(self.path(key, name), {"block": block, "seconds": seconds, "rows": checksum})
        self.unfinished(key, name).unlink(missing_ok=True)

    def read(self, key: str, name: str) -> tuple[dict[str, Any], float]:
        """One model's results and their seconds."""
        found = read_json(self.path(key, name))
        return found["block"], found["seconds"]

    def _rows(self, key: str, name: str) -> Path:
        return self.path(key, name).with_suffix(".parquet")

    def samples(self, key: str, names: Iterable[str]) -> pd.DataFrame:
        """One model's rows question by question, of one set after the other."""
        return read_samples([self._rows(key, name) for name in names])
