"""Children of these tests talk to a hub on this machine, and to nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.contents import publish_datasets
from hub.loopback import LoopbackHub
from hub.nursery import Nursery

#: Runs code in a process that knows the hub's address before it imports its client.
Child = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty hub."""
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as serving:
        yield serving


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where children come from."""
    with Nursery() as serving:
        yield serving


@pytest.fixture
def child(tmp_path: Path, nursery: Nursery) -> Child:
    """Run a piece of Python with arguments against a hub, in a home of this test's own."""

    def run(
        code: str, hub: LoopbackHub, *arguments: Any, limit_s: float = 250, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        known = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
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
def machine_cache() -> dict[str, str]:
    """The variable that lets a child find what is fetched already of the packaged texts."""
    known = os.environ.get("STREAMLINE_CACHE", "")
    return {"STREAMLINE_CACHE": known} if known else {}
