"""Models side by side on the machines and GPUs of a Ray cluster.

Each task is one model with all its cells, since those share calibration, teacher and prefix layers.
All tasks write into the same folder, which must be on storage that every node sees;
``results.json`` is kept whole by its lock. Needs the extra ``ray``.
"""

from __future__ import annotations

from typing import Any

from streamline.errors import ConfigError
from streamline.progress import Progress, Silent
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.executors.lost import lost_model
from streamline.run.model_run import run_model
from streamline.run.shards.part import WHOLE, Part


class RayExecutor:
    """Works the models of a run as tasks of a Ray cluster, one GPU each where there are GPUs."""

    def run(self, config: RunConfig, progress: Progress, part: Part = WHOLE) -> list[Record]:
        """Compute every cell; one model whose task fails or dies does not end the others.

        Raises:
            ConfigError: If Ray is not installed.
            Exception: Whatever ends the work of the run's only model.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "--executor ray needs Ray: pip install 'streamline-bench[ray]'"
            ) from error
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        n_gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_gpus=n_gpus)(work_model)
        waiting = {task.remote(config, model): model for model in config.models}
        order = list(waiting.values())
        progress.stage("ray", len(waiting))
        finished: dict[str, list[Record]] = {}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            model = waiting.pop(done[0])
            try:
                finished[model] = [Record.build(values) for values in ray.get(done[0])]
            except Exception as error:
                # Of the task, with what it raised as its cause, or its death.
                cause = getattr(error, "cause", None)
                error = cause if isinstance(cause, Exception) else error
                finished[model] = lost_model(config, model, error, progress)
            progress.step(len(finished), len(order), model)
        return [record for model in order for record in finished[model]]


def work_model(config: RunConfig, model: str) -> list[dict[str, Any]]:
    """Work one model in a task's own process; plain values come back."""
    return [record.to_json() for record in run_model(config, model, Silent())]
