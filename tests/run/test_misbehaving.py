"""Methods that break their promises: a run's other cells are what they are without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from misbehaving import FAULTS, HARMLESS

from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig

OTHERS = "shortgpt,streamline-v1-mlp"


@pytest.fixture(scope="module")
def apart(
    tmp_path_factory: pytest.TempPathFactory,
    config: Callable[..., RunConfig],
    numbers: Callable[[list[Record]], list[Any]],
) -> list[Any]:
    """The figures of the others where nobody misbehaves."""
    out = tmp_path_factory.mktemp("apart")
    return numbers(pipeline.run(config(out, methods=OTHERS)))


@pytest.mark.parametrize("name", [*FAULTS, *HARMLESS])
def test_a_method_that_breaks_a_promise_changes_no_other_cell(
    name: str,
    apart: list[Any],
    tmp_path: Path,
    config: Callable[..., RunConfig],
    numbers: Callable[[list[Record]], list[Any]],
) -> None:
    settings = config(tmp_path, methods=f"misbehaving:{name},{OTHERS}")
    dense, own, *others = pipeline.run(settings)
    assert numbers([dense, *others]) == apart
    if name in FAULTS:
        assert own.status == "failed"
        assert FAULTS[name] in (own.reason or "")
    else:
        assert own.status == "ok", own.reason
