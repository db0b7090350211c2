"""The model of a finished cell, put together from what its run has kept; nothing is trained.

The stages are called as the run called them: a decision and a trained network are loaded from
``DIR/cache``, what a run does not keep (a model that a method makes anew) is made again. A cell
that would be made otherwise today is refused.

Example::

    dense = load_dense(record.model, fingerprint, progress, **loading(config))
    model = Remaking(config, sources, dense, progress).model(record)
    model.save("out/best")
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamline.api.pruned_model import PrunedModel
from streamline.api.pruning import prune
from streamline.api.recovery import fine_tune
from streamline.api.training import train
from streamline.api.variants import Dense, Variant, only_variant
from streamline.distributed.work import shared
from streamline.errors import ConfigError
from streamline.plan import Plan
from streamline.progress import Progress
from streamline.reading import read_json
from streamline.results.record import Record, label
from streamline.run.cell import Cell, CellJob, cell_job
from streamline.run.config import RunConfig
from streamline.run.inputs import Sources, changes, shared_inputs
from streamline.run.measuring.texts import calibration_tokens
from streamline.sources.batches import TokenBatches
from streamline.training.state import nothing_trained

__all__ = ["Remaking", "job_of"]


def job_of(record: Record, config: RunConfig, sources: Sources, fingerprint: str) -> CellJob:
    """A finished cell as it would be run now.

    Args:
        record: Its record.
        config: The run, as the model has it.
        sources: What the names in its settings mean.
        fingerprint: Content key of the dense model.

    Raises:
        ConfigError: If something that decides the model has changed; the message says what.
    """
    job = cell_job(Cell(*record.identity), shared_inputs(config, fingerprint, sources))
    if job.model_key != record.extra("answers_key"):
        before = record.extra("inputs")
        known = changes(before, job.inputs.model) if isinstance(before, dict) else []
        raise ConfigError(
            f"{label(record)} of {config.out} would be another model today "
            f"({'; '.join(known) or 'other settings'}), and only the one that was measured is "
            "exported; run the same command again, which does the cell anew"
        )
    return job


@dataclass(frozen=True)
class Remaking:
    """What the cells of one model are put together from.

    Attributes:
        config: The run, as the model has it.
        sources: What the names in its settings mean.
        dense: The dense model.
        progress: Where to report what is being done.
    """

    config: RunConfig
    sources: Sources
    dense: Dense
    progress: Progress

    def model(self, record: Record) -> PrunedModel:
        """The model of a finished cell.

        Raises:
            ConfigError: If it would be another one today, or its training is not kept any more.
        """
        config, dense = self.config, self.dense
        job = shared(lambda: job_of(record, config, self.sources, dense.fingerprint))
        batches, cache = TokenBatches(dense.tokenizer, self.sources.revisions), config.out / "cache"
        tokens = partial(calibration_tokens, config, batches)
        variant = only_variant(prune([job.target], dense, tokens, cache, self.progress))
        plan = config.out / "plans" / f"{job.cell.slug}.json"
        shared(lambda: _require_plan(plan, variant, record))
        common: dict[str, Any] = {"texts": config.calibration.texts, "folder": cache}
        with nothing_trained():
            trained = train(
                [variant],
                dense,
                batches,
                config.training,
                losses=config.out / "losses",
                progress=self.progress,
                **common,
            )
            variant = only_variant(trained)
            if job.cell.recovery != "none":
                variant = fine_tune(
                    variant,
                    dense,
                    batches,
                    config.lora,
                    config.training,
                    kd=config.kd,
                    progress=self.progress,
                    **common,
                )
        return PrunedModel.of(dense, variant, job.cell.method, batches.facts(), key=record.key)


def _require_plan(file: Path, variant: Variant, record: Record) -> None:
    """Refuse a model with other layers than those that were measured."""
    if file.is_file() and Plan.from_json(read_json(file, "")) != variant.pruned.plan:
        raise ConfigError(
            f"{label(record)} now removes other layers than {file} says; its method decides "
            "otherwise on this machine. Export it where it was run, or run the cell again here"
        )
