"""The disk is full: one message or failed cells that name the file, and the same command ends equal.

Each command works on a small file system of its own, in a name space of mounts that only this test's
children see. Before one of its events the last free block is taken; then the space is given back and
the command is given again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from faults.harness import Verb, differences

EVERY = 8  # of the places where a run writes


def mounts() -> bool:
    """Whether this process may mount a file system of its own."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not mounts(), reason="only an administrator may mount a small disk")
