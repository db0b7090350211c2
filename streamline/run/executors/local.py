"""One model after the other, in this process."""

from __future__ import annotations

from streamline.progress import Progress
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.model_run import run_model


class LocalExecutor:
    """Works the models of a run in turn on the run's device."""

    def run(self, config: RunConfig, progress: Progress) -> list[Record]:
        """Work every cell; the models come in the order of the run."""
        return [record for model in config.models for record in run_model(config, model, progress)]
