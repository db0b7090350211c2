"""Cells side by side on the machines and GPUs of a Ray cluster.

Each task is a shard of the run: cells that share a model, calibration and teacher, about as long as
the others. Everything is written into the run's folder, which must be on storage that every node
sees. A task whose worker or node dies is started again elsewhere and goes on with what is there.
Needs the extra ``ray``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamline.errors import ConfigError, StreamlineError
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.executors.tasks import (
    Tasks,
    described,
    main_memory,
    plugin_folders,
    task_environment,
    work_task,
)
from streamline.run.shards.part import WHOLE, Part

__all__ = ["RayExecutor"]

_POLL_S = 1.0
_RETRIES = 1  # of a task whose worker or node dies; then each cell has as many


class RayExecutor:
    """Works the cells of a run as tasks of a Ray cluster, one GPU each where there are GPUs."""

    def run(self, config: RunConfig, progress: Progress, part: Part = WHOLE) -> list[Record]:
        """Compute every cell; a task that fails or dies does not end the others.

        Raises:
            ConfigError: If Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "--executor ray needs Ray: pip install 'streamline-bench[ray]'"
            ) from error
        surroundings: dict[str, Any] = {"env_vars": task_environment()}
        mine = not ray.is_initialized()
        if mine:
            try:
                modules = plugin_folders(config.all_methods())
                ray.init(
                    address=config.ray_address,
                    log_to_driver=False,
                    runtime_env=surroundings | ({"py_modules": modules} if modules else {}),
                )
            except ConnectionError as error:
                raise ConfigError(
                    f"no Ray cluster answers at {config.ray_address or 'RAY_ADDRESS'} ({error}); "
                    "start one (`ray start --head`), or leave --ray-address out for one on this "
                    "machine"
                ) from error
        try:
            return _worked(ray, config, progress, None if mine else surroundings)
        finally:
            if mine:
                ray.shutdown()


def _worked(
    ray: Any, config: RunConfig, progress: Progress, surroundings: dict[str, Any] | None
) -> list[Record]:
    """The records of all cells, worked on the cluster that this process is connected to.

    Args:
        ray: The module.
        config: The run.
        progress: Where to report how many cells have ended.
        surroundings: What workers need of this process, where it is not said to the cluster yet.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    tasks = Tasks(config, progress, config.shards or gpus or len(nodes))
    task, place = ray.remote(work_task), str(Path.cwd())
    needs: dict[str, Any] = {"num_gpus": 1 if gpus else 0}
    room = [int(there.get("memory", 0)) for there in nodes if there.get("CPU")]
    if not gpus and (size := min([main_memory(config), *room])):
        needs["memory"] = size  # no node gets more tasks than it holds, and each gets one
    if surroundings is not None:
        needs["runtime_env"] = surroundings

    def start(part: Part, retries: int) -> Any:
        """Begin a part; Ray begins it again, elsewhere too, as often as its process dies."""
        own = task.options(**needs, max_retries=retries, name=part.name)
        return own.remote(config, part, place)

    waiting = {start(part, _RETRIES): part for part in tasks.parts}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
        for reference in done:
            part = waiting.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # what the task raised
                tasks.failed(part, described(error))
            except ray.exceptions.RayError as error:  # it died, again and again
                alone = tasks.alone(part)
                waiting |= {start(one, _RETRIES): one for one in alone}
                if not alone:
                    why = str(error).strip().splitlines()[0]
                    tasks.failed(part, StreamlineError(f"its process died: {why}"))
        tasks.show()
    return tasks.records()
