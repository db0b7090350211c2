"""One model after the other, in this process."""

from __future__ import annotations

from functools import partial

from streamline.distributed.work import shared
from streamline.progress import Progress, planned, portions
from streamline.results.record import Record
from streamline.run.cell import expand
from streamline.run.config import RunConfig
from streamline.run.executors.lost import lost_model
from streamline.run.model_run import run_model
from streamline.run.planning.hours import expected
from streamline.run.shards.part import WHOLE, Part


class LocalExecutor:
    """Works the models of a run in turn on the run's device."""

    def run(self, config: RunConfig, progress: Progress, part: Part = WHOLE) -> list[Record]:
        """Work every cell; the models come in the order of the run.

        Raises:
            Exception: Whatever ends the work of the run's only model; of several, one that cannot
                be worked is recorded and the others go on.
        """
        records = []
        models = [m for m in config.models if part.of(expand(config.for_model(m), m))]
        times = expected(models)
        places = portions(times or [1.0] * len(models))
        with planned(sum(times) if times else None):
            for model, place in zip(models, places, strict=True):
                with place:
                    try:
                        records += run_model(config, model, progress, part)
                    except Exception as error:  # of this model, and no other
                        records += shared(partial(lost_model, config, model, error, progress, part))
        return records
