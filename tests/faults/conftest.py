"""The little world, and what undisturbed commands make of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Verb
from faults.world import build


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, questions and a suite."""
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def verb(world: Path, tmp_path: Path) -> Callable[[str], Verb]:
    """``verb("run")``: the verb in a folder of this test's own, not carried out yet."""
    return lambda name: Verb(name, world, tmp_path / name)


@pytest.fixture(scope="session")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Verb]:
    """``undisturbed("run")``: a verb that has been carried out once, with its trace."""
    done: dict[str, Verb] = {}

    def carried_out(name: str) -> Verb:
        if name not in done:
            made = Verb(name, world, tmp_path_factory.mktemp(name))
            if name == "report":
                shutil.copytree(carried_out("run").out, made.out)
            outcome = made.carry_out()
            assert outcome.code == 0, outcome.err
            done[name] = made
        return done[name]

    return carried_out
