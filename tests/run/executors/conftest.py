"""The tiny runs of the shards' tests, and methods that end their processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run.shards.conftest import config, place

from streamline.run import pipeline

__all__ = ["config", "place"]

_PLUGIN = '''
"""Methods that kill their process, raise, or wait for their node to be killed."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from streamline.method import DepthMethod
from streamline.plan import Plan

HERE = Path(os.environ["STREAMLINE_TEST_PLACE"])


@dataclass(frozen=True, kw_only=True)
class Last(DepthMethod):
    name: ClassVar[str] = "last"
    paper: ClassVar[str] = "a test"

    def select(self, calibration, n_remove):
        n = calibration.n_layers
        return Plan.drop(n, range(n - 1 - n_remove, n - 1))


@dataclass(frozen=True, kw_only=True)
class Raises(Last):
    def select(self, calibration, n_remove):
        raise ValueError("no layer will do")


@dataclass(frozen=True, kw_only=True)
class Exits(Last):
    def select(self, calibration, n_remove):
        os._exit(1)


@dataclass(frozen=True, kw_only=True)
class Waits(Last):
    def select(self, calibration, n_remove):
        import ray

        if not (HERE / "waiting").exists():
            node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
            (HERE / "waiting").write_text(node)
            if node != "here":
                time.sleep(120)
        return super().select(calibration, n_remove)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of methods that workers know by this process's path alone."""
    folder = tmp_path / "plugins"
    (folder / "nearby").mkdir(parents=True)
    (folder / "nearby" / "__init__.py").write_text(_PLUGIN, encoding="utf-8")
    monkeypatch.setenv("STREAMLINE_TEST_PLACE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)
    return tmp_path
