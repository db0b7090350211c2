"""Children of these tests talk to a hub on this machine, and to nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.contents import publish_datasets
from hub.loopback import LoopbackHub
from hub.nursery import Nursery

from streamline.files import cache_dir

#: Runs code in a process that knows the hub's address before it imports its client.
Child = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """One address for all tests."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(serving: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """An empty hub."""
    (tmp_path / "hub").mkdir()
    serving.begin(tmp_path / "hub")
    return serving


@pytest.fixture(scope="session")
def one_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for what children read of their hub."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(one_home: Path) -> Path:
    """The same, empty."""
    shutil.rmtree(one_home, ignore_errors=True)
    return one_home


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where children come from."""
    with Nursery() as serving:
        yield serving


@pytest.fixture
def child(tmp_path: Path, nursery: Nursery, home: Path) -> Child:
    """Run a piece of Python with arguments against a hub."""

    def run(
        code: str, hub: LoopbackHub, *arguments: Any, limit_s: float = 250, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        known = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "STREAMLINE_CACHE": str(tmp_path / "cache"),
        }
        return nursery.run(
            code,
            [json.dumps(argument) for argument in arguments],
            env=os.environ | known | environment,
            folder=tmp_path,
            limit_s=limit_s,
        )

    return run


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder with every data set, made once; tests copy what they change."""
    root = tmp_path_factory.mktemp("published")
    publish_datasets(root)
    return root


@pytest.fixture(scope="session")
def machine_cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variable that lets a child find what this machine has of the packaged data.

    These are links in a cache of the tests' own: what they read of their hub stays there, and what
    the machine does not have yet is made once.
    """
    made = tmp_path_factory.mktemp("machine") / "cache"
    if cache_dir().is_dir():
        others = shutil.ignore_patterns("hub", "claims")
        shutil.copytree(cache_dir().absolute(), made, copy_function=os.symlink, ignore=others)
    return {"STREAMLINE_CACHE": str(made)}
