"""Runs of a tiny model in parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_inputs import small_run, write_inputs

from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig

_TIMES = ("cost", "versions", "seconds")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text and questions in their original form."""
    return write_inputs(tmp_path_factory.mktemp("place"), n_questions=8)


@pytest.fixture(scope="session")
def config(place: Path) -> Callable[..., RunConfig]:
    """``config(out, **changes)``: a small run of that model with other fields as given."""

    def build(out: Path, **changes: Any) -> RunConfig:
        methods = "shortgpt,llm-streamline-layer,llm-streamline-ffn,slicegpt"
        one = small_run(place, out).training.model_dump()
        training = one | {"epochs": 2, "cache_bytes": 1_000_000}
        return small_run(place, out, **{"methods": methods, "training": training, **changes})

    return build


@pytest.fixture(scope="session")
def whole(
    config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a run of all cells records, and writes beside, without times."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "report_run", lambda _: None)  # it takes longer than the run
        records = pipeline.run(config(out))
    assert [record.status for record in records] == ["ok"] * 5
    return outcome(out, records)


def outcome(out: Path, records: list[Record]) -> dict[str, Any]:
    """Records without times and versions, and the bytes of what lies beside them, by name."""
    found: dict[str, Any] = {}
    for record in records:
        found[" ".join(map(str, record.identity[1:]))] = _timeless(record.to_json())
    for folder in ("samples", "plans", "losses"):
        for file in sorted((out / folder).glob("*")):
            losses = folder == "losses"
            data = file.read_bytes()
            found[f"{folder}/{file.name}"] = (
                _timeless([json.loads(line) for line in data.splitlines()]) if losses else data
            )
    return found


def _timeless(value: Any) -> Any:
    """Plain values without times and versions."""
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if name not in _TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
