"""Packages that this one does not need, each in its own folder, and processes that have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def install(packages: str, target: Path) -> None:
    """Put packages into a folder, without what they depend on."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*command, "--target", str(target), *packages.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"{packages} cannot be installed here: {done.stderr.strip()[-200:]}")


def printed(target: Path, code: str, *arguments: Any) -> Any:
    """What a process prints last, as JSON."""
    paths = [str(target), *(path for path in sys.path if path)]
    child = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])
