"""Where the cells of a run are run."""

from __future__ import annotations

from typing import Protocol

from streamline.errors import UnknownNameError
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.executors.local import LocalExecutor
from streamline.run.executors.ray import RayExecutor


class Executor(Protocol):
    """Works all models of a run."""

    def run(self, config: RunConfig, progress: Progress) -> list[Record]:
        """Work every cell and give back its record."""


def executor(name: str) -> Executor:
    """The executor of a name.

    Raises:
        UnknownNameError: If it is neither ``local`` nor ``ray``.
    """
    if name == "local":
        return LocalExecutor()
    if name == "ray":
        return RayExecutor()
    raise UnknownNameError(f"unknown executor {name!r}; available: local, ray")
