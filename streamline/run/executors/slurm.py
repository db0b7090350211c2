"""Cells side by side as jobs of a SLURM cluster, submitted by submitit.

Each job is a shard of the run, as a task of Ray is. A job that SLURM preempts or that reaches its
time is queued again and goes on with what is there. Needs the extra ``slurm``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError, StreamlineError
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.executors.tasks import Tasks, task_environment, work_task
from streamline.run.shards.part import WHOLE, Part

__all__ = ["SlurmExecutor"]

_JOBS = 8  # where the run says nothing else
_POLL_S = 10.0
_TIMEOUTS = 1000  # after which a job is not queued again: it goes on each time


@dataclass(frozen=True)
class Job:
    """A part of a run as a job; submitit queues it again as it is."""

    config: RunConfig
    part: Part
    place: str

    def __call__(self) -> int:
        """Work the part; the number of its cells."""
        return work_task(self.config, self.part, self.place)

    def checkpoint(self) -> Any:
        """What is queued when SLURM ends the job: the same, which goes on with what is there."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmExecutor:
    """Works the cells of a run as an array of jobs.

    Args:
        cluster: ``slurm``; submitit's ``local`` and ``debug`` start processes here or none.
    """

    def __init__(self, cluster: str = "slurm") -> None:
        self.cluster = cluster

    def run(self, config: RunConfig, progress: Progress, part: Part = WHOLE) -> list[Record]:
        """Compute every cell; a job that fails or dies does not end the others.

        Raises:
            ConfigError: If submitit or SLURM is not there, or does not know an option of the run.
        """
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "--executor slurm needs submitit: pip install 'streamline-bench[slurm]'"
            ) from error
        logs = config.out / "slurm"
        options = {"name": "streamline"} | dict(config.slurm)
        try:
            jobs = submitit.AutoExecutor(
                folder=logs, cluster=self.cluster, slurm_max_num_timeout=_TIMEOUTS
            )
            jobs.update_parameters(**options)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"SLURM cannot be used: {why} The block slurm of the run holds "
                "what submitit's update_parameters takes, such as timeout_min, gpus_per_node, "
                "slurm_partition or slurm_account."
            ) from error
        tasks = Tasks(config, progress, config.shards or _JOBS)
        place = str(Path.cwd())
        waiting = self._submitted(jobs, [Job(config, one, place) for one in tasks.parts])
        while waiting:
            for job, one in list(waiting.items()):
                if not job.done():
                    continue
                del waiting[job]
                ended = job.exception()
                if isinstance(ended, submitit.core.utils.FailedJobError):
                    tasks.failed(one.part, StreamlineError(_said(ended)))
                elif ended is not None:  # its process left no result: it died
                    alone = tasks.alone(one.part)
                    waiting |= self._submitted(jobs, [Job(config, x, place) for x in alone])
                    if not alone:
                        tasks.failed(one.part, StreamlineError("its process died"))
            tasks.show()
            if waiting:
                time.sleep(_POLL_S if self.cluster == "slurm" else 0.2)
        return tasks.records()

    def _submitted(self, jobs: Any, works: list[Job]) -> dict[Any, Job]:
        """The jobs of an array with what each does."""
        if not works:
            return {}
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = task_environment()["PYTHONPATH"]  # jobs inherit it
        try:
            with jobs.batch():
                submitted = [jobs.submit(work) for work in works]
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
        return dict(zip(submitted, works, strict=True))


def _said(error: Exception) -> str:
    """The last line of the traceback that submitit wraps: what the job raised."""
    lines = [line for line in str(error).splitlines() if line.strip(" -")]
    places = [number for number, line in enumerate(lines) if line.startswith("  ")]
    return lines[min(max(places, default=-1) + 1, len(lines) - 1)] if lines else "it failed"
