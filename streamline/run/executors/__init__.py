"""Where the cells of a run are run."""

from __future__ import annotations

from typing import Protocol

from streamline.errors import UnknownNameError
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.executors.local import LocalExecutor
from streamline.run.executors.ray import RayExecutor
from streamline.run.executors.slurm import SlurmExecutor
from streamline.run.shards.part import WHOLE, Part


class Executor(Protocol):
    """Works all models of a run."""

    def run(self, config: RunConfig, progress: Progress, part: Part = WHOLE) -> list[Record]:
        """Work every cell of a part of the run and give back its record."""


def executor(name: str) -> Executor:
    """The executor of a name.

    Raises:
        UnknownNameError: If it is none of ``local``, ``ray`` and ``slurm``.
    """
    if name == "local":
        return LocalExecutor()
    if name == "ray":
        return RayExecutor()
    if name == "slurm":
        return SlurmExecutor()
    raise UnknownNameError(f"unknown executor {name!r}; available: local, ray, slurm")
