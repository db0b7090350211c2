"""A tiny model on disk with texts and questions, and runs of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_inputs import small_run, write_inputs

from streamline.results.record import Record
from streamline.run.config import RunConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text and questions in their original form."""
    return write_inputs(tmp_path_factory.mktemp("place"), n_questions=8)


@pytest.fixture(scope="module")
def config(place: Path) -> Callable[..., RunConfig]:
    """``config(out, **changes)``: a small run of that model with other fields as given."""

    return partial(small_run, place)


@pytest.fixture(scope="module")
def numbers() -> Callable[[list[Record]], list[Any]]:
    """Everything measured of some records but the times and the memory."""

    def found(records: list[Record]) -> list[Any]:
        return [(r.identity, r.status, r.plan, r.parameters, r.tasks, r.summary) for r in records]

    return found


@pytest.fixture(scope="module")
def post_trained(config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """``post_trained(out, **changes)``: replacements trained a second time, on the next token."""

    def build(out: Path, **changes: Any) -> RunConfig:
        settings = config(out, methods="streamline-v1-mlp,streamline-v1-multiple-mlp")
        post = {"post_train": {"n_tokens": 128, "learning_rate": 1e-3}}
        training = settings.training.model_dump() | post | changes
        return settings.model_copy(
            update={"training": type(settings.training).model_validate(training)}
        )

    return build
